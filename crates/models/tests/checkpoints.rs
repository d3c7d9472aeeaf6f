//! Which files and tensors of a checkpoint folder are read, and what is refused.

mod common;

use std::path::Path;

use abkd_models::generate::{Decoding, generate};
use abkd_models::{LanguageModel, ModelConfig, checkpoint, verify};
use burn::tensor::{Device, Int, Tensor};
use common::{Folder, Tensors, goldens, load, values};
use serde_json::json;

const ALL: [&str; 3] = ["gpt2-tiny", "llama-tiny", "llama-tied-tiny"];

fn position(tensors: &Tensors, end: &str) -> usize {
    tensors
        .iter()
        .position(|(name, ..)| name.ends_with(end))
        .unwrap()
}

fn assert_same(folder: &Folder, name: &str) {
    let model = folder
        .load()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(values(&model), values(&load(name)), "{name}");
}

/// Scaled rotary frequencies in both layouts of config.json, and an untied head; a saved model stays right.
#[test]
fn scaled_frequencies_and_a_head_of_its_own_are_those_of_transformers() {
    let right = |dir: &Path| {
        let checks = verify::verify_model(dir, &Device::flex()).unwrap();
        checks.iter().all(|check| check.error <= check.tolerance)
    };
    for name in ["llama-rope-llama3", "llama-rope-linear", "gpt2-untied"] {
        let folder = Folder::of(name);
        assert!(right(folder.dir()), "{name}");
        checkpoint::save(&load(name), folder.dir(), checkpoint::StoredAs::F32).unwrap();
        assert!(right(folder.dir()), "{name}, as it is written here");
        if name.starts_with("gpt2") {
            continue;
        }
        // As transformers 4 writes it.
        let folder = Folder::of(name);
        let mut config = folder.json("config.json");
        let mut rope = config["rope_parameters"].take();
        config["rope_theta"] = rope["rope_theta"].take();
        for key in ["rope_theta", "partial_rotary_factor"] {
            rope.as_object_mut().unwrap().remove(key);
        }
        config["rope_scaling"] = rope.clone();
        folder.set_json("config.json", &config);
        assert!(right(folder.dir()), "{name}, old layout");
        // The golden file detects another scaling and another base.
        folder.edit("config.json", "rope_scaling", serde_json::Value::Null);
        assert!(!right(folder.dir()), "{name}, without scaling");
        folder.edit("config.json", "rope_scaling", rope);
        folder.edit("config.json", "rope_theta", 10000.into());
        assert!(!right(folder.dir()), "{name}, with another base");
    }
}

/// Checkpoints that are known to cause trouble, beside the project if they are there.
#[test]
fn the_cases_beside_the_project_give_the_logits_of_transformers() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/cases");
    if !cases.exists() {
        println!("skipped: there is no {}", cases.display());
        return;
    }
    for case in [
        "1-rope-parameters/theta",
        "3-head-dropped/gpt2-untied",
        "4-stale-index/model",
        "11-eos-list/model",
        "20-names/gpt2-lm-head-only",
    ] {
        let checks = verify::verify_model(&cases.join(case), &Device::flex());
        for check in checks.unwrap_or_else(|error| panic!("{case}: {error}")) {
            assert!(check.error <= check.tolerance, "{case}: {check:?}");
        }
    }
    let pointer = checkpoint::load(&cases.join("12-not-there/lfs"), &Device::flex());
    assert!(pointer.unwrap_err().to_string().contains("git lfs pull"));
}

#[test]
fn a_whole_file_wins_over_the_index_beside_it() {
    for name in ALL {
        let folder = Folder::of(name);
        let tensors = folder.tensors("model.safetensors");
        folder.shard();
        // the shards alone
        assert_same(&folder, name);
        // old shards beside a newer file
        let old: Tensors = tensors
            .iter()
            .map(|(n, shape, x)| {
                (
                    n.clone(),
                    shape.clone(),
                    x.iter().map(|x| x + 1.0).collect(),
                )
            })
            .collect();
        folder.set_tensors("model.safetensors", &old);
        folder.shard();
        folder.set_tensors("model.safetensors", &tensors);
        assert_same(&folder, name);
        // an old shard may be missing
        folder.remove("model-00001-of-00002.safetensors");
        assert_same(&folder, name);
    }
}

#[test]
fn an_index_names_files_beside_it_that_have_its_tensors() {
    const INDEX: &str = "model.safetensors.index.json";
    const FIRST: &str = "model-00001-of-00002.safetensors";
    let moved = |shard: &str| {
        let folder = Folder::of("gpt2-tiny");
        folder.shard();
        let mut index = folder.json(INDEX);
        index["weight_map"]["transformer.wte.weight"] = shard.into();
        folder.set_json(INDEX, &index);
        folder
    };
    // The right tensor, in a folder that must not be read.
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = moved("x");
    let outside = elsewhere.path().join("a.safetensors");
    std::fs::copy(folder.path("model-00002-of-00002.safetensors"), &outside).unwrap();
    let up = format!(
        "../{}/a.safetensors",
        elsewhere.path().file_name().unwrap().display()
    );
    for shard in [
        outside.to_str().unwrap(),
        &up,
        "sub/a",
        "..",
        ".",
        "",
        "./x",
        "a\\b",
    ] {
        let error = moved(shard).refused();
        assert!(
            error.contains(INDEX) && error.contains("not the name of a file"),
            "{error}"
        );
        assert!(error.contains("transformer.wte.weight"), "{error}");
    }
    let error = moved("model-00009-of-00002.safetensors").refused();
    assert!(
        error.contains("model-00009") && error.contains("not there"),
        "{error}"
    );
    let error = moved(FIRST).refused();
    assert!(
        error.contains(INDEX) && error.contains("does not have it"),
        "{error}"
    );
    for map in [
        json!({}),
        json!([]),
        json!("x"),
        json!(null),
        json!({"transformer.wte.weight": 3}),
    ] {
        let folder = moved(FIRST);
        folder.edit(INDEX, "weight_map", map);
        let error = folder.refused();
        assert!(
            error.contains(INDEX) && error.contains("weight_map"),
            "{error}"
        );
    }

    // A tensor may be in two files if both agree.
    let twice = |change: f32| {
        let folder = Folder::of("gpt2-tiny");
        folder.shard();
        let second = folder.tensors("model-00002-of-00002.safetensors");
        let mut first = folder.tensors(FIRST);
        let (name, shape, numbers) = &second[position(&second, "wte.weight")];
        let numbers = numbers.iter().map(|x| x + change).collect();
        first.push((name.clone(), shape.clone(), numbers));
        folder.set_tensors(FIRST, &first);
        folder
    };
    assert_same(&twice(0.0), "gpt2-tiny");
    let error = twice(1.0).refused();
    assert!(
        error.contains("wte.weight") && error.contains("differs"),
        "{error}"
    );

    #[cfg(unix)]
    {
        // a symbolic link, as in the cache of the Hub
        let folder = moved("linked.safetensors");
        let target = folder.path("model-00002-of-00002.safetensors");
        std::os::unix::fs::symlink(target, folder.path("linked.safetensors")).unwrap();
        assert_same(&folder, "gpt2-tiny");
    }
}

#[test]
fn a_folder_without_readable_weights_says_what_is_there() {
    let folder = Folder::of("gpt2-tiny");
    folder.remove("model.safetensors");
    let error = folder.refused();
    assert!(error.contains("neither model.safetensors nor"), "{error}");
    std::fs::write(folder.path("pytorch_model.bin"), b"PK").unwrap();
    let error = folder.refused();
    assert!(error.contains("pytorch_model.bin is not read"), "{error}");
}

#[test]
fn a_git_lfs_pointer_is_named_as_what_it_is() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 548105171\n";
    for file in ["model.safetensors", "config.json", "generation_config.json"] {
        let folder = Folder::of("gpt2-tiny");
        std::fs::write(folder.path(file), pointer).unwrap();
        let error = folder.refused();
        assert!(
            error.contains(file) && error.contains("git lfs pull"),
            "{error}"
        );
    }
    let folder = Folder::of("gpt2-tiny");
    folder.shard();
    std::fs::write(folder.path("model-00002-of-00002.safetensors"), pointer).unwrap();
    let error = folder.refused();
    assert!(
        error.contains("model-00002") && error.contains("git lfs pull"),
        "{error}"
    );
}

#[test]
fn what_is_no_plain_file_is_refused() {
    for file in ["model.safetensors", "config.json", "generation_config.json"] {
        let folder = Folder::of("llama-tiny");
        folder.remove(file);
        std::fs::create_dir(folder.path(file)).unwrap();
        let error = folder.refused();
        assert!(
            error.contains(file) && error.contains("this is a folder"),
            "{error}"
        );
        #[cfg(unix)]
        {
            std::fs::remove_dir(folder.path(file)).unwrap();
            std::os::unix::fs::symlink("/dev/zero", folder.path(file)).unwrap();
            let error = folder.refused();
            assert!(
                error.contains(file) && error.contains("a device"),
                "{error}"
            );
        }
    }
    let folder = Folder::of("llama-tiny");
    std::fs::write(folder.path("model.safetensors"), b"").unwrap();
    assert!(folder.refused().contains("it is empty"));
}

#[test]
fn tied_weights_may_be_stored_under_either_name_or_both() {
    for name in ["gpt2-tiny", "llama-tied-tiny"] {
        let end = if name == "gpt2-tiny" {
            "wte.weight"
        } else {
            "embed_tokens.weight"
        };
        let folder = Folder::of(name);
        folder.edit_tensors(|tensors| {
            let place = position(tensors, end);
            tensors[place].0 = "lm_head.weight".into();
        });
        assert_same(&folder, name);

        let folder = Folder::of(name);
        let with_head = |change: f32| {
            folder.edit_tensors(|tensors| {
                tensors.retain(|(name, ..)| name != "lm_head.weight");
                let (_, shape, mut numbers) = tensors[position(tensors, end)].clone();
                numbers[5] += change;
                tensors.push(("lm_head.weight".into(), shape, numbers));
            });
        };
        with_head(0.0);
        assert_same(&folder, name);
        with_head(0.25);
        let error = folder.refused();
        for wanted in ["lm_head.weight", "differs", "tie_word_embeddings"] {
            assert!(error.contains(wanted), "{error}");
        }
    }
}

#[test]
fn names_lack_the_prefix_in_all_or_in_none() {
    for name in ALL {
        let prefix = if name == "gpt2-tiny" {
            "transformer."
        } else {
            "model."
        };
        let folder = Folder::of(name);
        folder.edit_tensors(|tensors| {
            for (name, ..) in tensors.iter_mut() {
                if let Some(rest) = name.strip_prefix(prefix) {
                    *name = rest.into();
                }
            }
        });
        assert_same(&folder, name);

        let folder = Folder::of(name);
        folder.edit_tensors(|tensors| {
            let place = position(
                tensors,
                if prefix == "model." {
                    ".norm.weight"
                } else {
                    "ln_f.weight"
                },
            );
            tensors[place].0 = tensors[place].0.strip_prefix(prefix).unwrap().into();
        });
        assert!(folder.refused().contains("missing"));
    }
}

#[test]
fn buffers_are_skipped_and_other_tensors_are_refused_by_name() {
    for (name, buffer, other) in [
        (
            "gpt2-tiny",
            "transformer.h.0.attn.bias",
            "transformer.h.0.attn.scale",
        ),
        (
            "gpt2-tiny",
            "transformer.h.1.attn.masked_bias",
            "transformer.h.2.ln_1.weight",
        ),
        (
            "llama-tiny",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "model.layers.0.self_attn.q_proj.bias",
        ),
        (
            "llama-tiny",
            "model.rotary_emb.inv_freq",
            "model.layers.0.self_attn.q_norm.weight",
        ),
    ] {
        let with = |extra: &str| {
            let folder = Folder::of(name);
            folder.edit_tensors(|tensors| tensors.push((extra.into(), vec![2], vec![1.0, 0.0])));
            folder
        };
        assert_same(&with(buffer), name);
        let error = with(other).refused();
        assert!(
            error.contains(other) && error.contains("no place"),
            "{error}"
        );
    }
    // A buffer of one architecture is not a buffer of the other.
    let folder = Folder::of("llama-tiny");
    folder.edit_tensors(|tensors| {
        tensors.push(("model.layers.0.attn.bias".into(), vec![1], vec![1.0]));
    });
    assert!(folder.refused().contains("model.layers.0.attn.bias"));
}

#[test]
fn numbers_of_another_kind_are_refused_by_name() {
    use safetensors::tensor::{Dtype, TensorView};
    let folder = Folder::of("llama-tiny");
    let tensors = folder.tensors("model.safetensors");
    let stored: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, x)| {
            if name == "model.norm.weight" {
                let bytes = x.iter().flat_map(|x| f64::from(*x).to_le_bytes()).collect();
                (name, shape, Dtype::F64, bytes)
            } else {
                let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, shape, Dtype::F32, bytes)
            }
        })
        .collect();
    let views = stored.iter().map(|(name, shape, dtype, bytes)| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path("model.safetensors"), bytes).unwrap();
    let error = folder.refused();
    assert!(error.contains("`model.norm.weight` is F64"), "{error}");
}

/// The sizes in config.json are compared with the file before memory is allocated for them.
#[test]
fn sizes_that_are_not_those_of_the_file_are_refused_at_once() {
    let begun = std::time::Instant::now();
    for (name, key, size) in [
        ("gpt2-tiny", "n_layer", 4000u64),
        ("gpt2-tiny", "n_layer", 1_000_000),
        ("gpt2-tiny", "vocab_size", 16_000_000),
        ("gpt2-tiny", "vocab_size", 1_000_000_000),
        ("gpt2-tiny", "n_positions", 16_000_000),
        ("gpt2-tiny", "n_embd", 1 << 40),
        ("gpt2-tiny", "n_embd", 131_072),
        ("gpt2-tiny", "n_inner", u64::MAX),
        ("llama-tiny", "intermediate_size", 1_000_000),
        ("llama-tiny", "num_attention_heads", 1 << 12),
        ("llama-tiny", "head_dim", 1 << 14),
        ("llama-tiny", "hidden_size", 1 << 17),
    ] {
        let folder = Folder::of(name);
        folder.edit("config.json", key, size.into());
        let error = folder.refused();
        assert!(error.contains(folder.dir().to_str().unwrap()), "{error}");
    }
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn an_adapter_beside_a_model_is_refused() {
    let folder = Folder::of("llama-tiny");
    let adapter = goldens().join("llama-tiny-lora/adapter_config.json");
    std::fs::copy(adapter, folder.path("adapter_config.json")).unwrap();
    assert!(folder.refused().contains("adapter_config.json"));
}

/// gpt2-tiny with an untied head.
fn untied() -> Folder {
    let folder = Folder::of("gpt2-tiny");
    folder.edit("config.json", "tie_word_embeddings", false.into());
    folder.edit_tensors(|tensors| {
        let (_, shape, numbers) = tensors[position(tensors, "wte.weight")].clone();
        let numbers = numbers.iter().enumerate();
        let numbers = numbers
            .map(|(i, x)| 0.5 * x + 0.1 * (i as f32 * 0.3).sin())
            .collect();
        tensors.push(("lm_head.weight".into(), shape, numbers));
    });
    folder
}

fn logits(model: &LanguageModel) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_ints([[5, 9, 2, 7, 11]], &Device::flex());
    let hidden = model.hidden(ids, &[], None);
    let d = hidden.dims()[2];
    let logits = model.logits(hidden.reshape([5, d]));
    logits.into_data().as_slice().unwrap().to_vec()
}

/// The logits are products of the hidden states with the stored head, and each way of using the model uses that head.
#[test]
fn a_head_of_its_own_is_kept() {
    let folder = untied();
    let model = folder.load().unwrap();
    let tied = load("gpt2-tiny");
    let stored = folder.tensors("model.safetensors");
    let (_, _, head) = &stored[position(&stored, "lm_head.weight")];
    let ids = Tensor::<2, Int>::from_ints([[5, 9, 2, 7, 11]], &Device::flex());
    let hidden: Vec<f32> = tied
        .hidden(ids, &[], None)
        .into_data()
        .as_slice()
        .unwrap()
        .to_vec();
    let d = hidden.len() / 5;
    let ours = logits(&model);
    for (t, hidden) in hidden.chunks(d).enumerate() {
        for (v, head) in head.chunks(d).enumerate() {
            let exact: f64 = hidden.iter().zip(head).map(|(a, b)| f64::from(a * b)).sum();
            let ours = f64::from(ours[t * head_count(&stored) + v]);
            assert!((ours - exact).abs() < 1e-4, "{t} {v}: {ours} {exact}");
        }
    }
    assert_ne!(ours, logits(&tied));

    // saved and read
    let dir = tempfile::tempdir().unwrap();
    checkpoint::save(&model, dir.path(), checkpoint::StoredAs::F32).unwrap();
    let again = checkpoint::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(values(&again), values(&model));
    assert_eq!(again.config(), model.config());

    // sampled: the likeliest token of the host's decoder is that of the tensors
    let decoding = Decoding {
        max_new_tokens: 1,
        ..Decoding::greedy()
    };
    let prompt = [vec![5, 9, 2, 7, 11]];
    let answer = generate(&model, &prompt, &[0], 0, &[], &decoding, &mut |_| {}).unwrap();
    let last = &ours[4 * head_count(&stored)..];
    let likeliest = (0..last.len())
        .max_by(|&a, &b| last[a].total_cmp(&last[b]))
        .unwrap();
    assert_eq!(answer[0], [likeliest as u32]);

    // and fewer layers keep it
    let names = |model: &LanguageModel| -> Vec<String> {
        let all = values(model).into_iter();
        all.map(|(name, ..)| name)
            .filter(|n| n == "lm_head.weight")
            .collect()
    };
    assert_eq!(names(&model.with_layers(1).unwrap()).len(), 1);
    assert!(names(&tied).is_empty());
}

fn head_count(tensors: &Tensors) -> usize {
    tensors[position(tensors, "lm_head.weight")].1[0]
}

#[test]
fn a_head_that_config_json_asks_for_must_be_there() {
    let folder = Folder::of("gpt2-tiny");
    folder.edit("config.json", "tie_word_embeddings", false.into());
    let error = folder.refused();
    assert!(
        error.contains("`lm_head.weight`") && error.contains("missing"),
        "{error}"
    );
    // if the head is tied, a stored head must equal the embedding
    let folder = untied();
    folder.edit("config.json", "tie_word_embeddings", true.into());
    assert!(folder.refused().contains("differs"));
}

#[test]
fn any_token_of_the_list_ends_an_answer_and_the_list_is_written() {
    let folder = Folder::of("llama-tiny");
    let golden = folder.json("golden.json");
    let answer: Vec<u32> = serde_json::from_value(golden["greedy"][0].clone()).unwrap();
    let (third, last) = (answer[2], *answer.last().unwrap());
    folder.edit("config.json", "eos_token_id", json!([96, third]));
    folder.remove("generation_config.json");
    let model = folder.load().unwrap();
    let ends = model.config().eos_ids();
    assert_eq!(
        (model.config().eos(), &ends[..]),
        (Some(96), &[96, third][..])
    );
    let prompt: Vec<u32> = serde_json::from_value(golden["prompt_ids"][0].clone()).unwrap();
    let prompt = [prompt];
    let decoding = Decoding {
        max_new_tokens: answer.len(),
        ..Decoding::greedy()
    };
    let answers = |ends: &[u32]| generate(&model, &prompt, &[0], 0, ends, &decoding, &mut |_| {});
    assert_eq!(answers(&ends).unwrap()[0], answer[..3]);
    assert_eq!(answers(&[96, last]).unwrap()[0], answer);
    // The golden answers continue after that token.
    let checks = verify::verify_model(folder.dir(), &Device::flex()).unwrap();
    assert_eq!(checks.len(), 4);
    assert!(
        checks.iter().all(|check| check.error <= check.tolerance),
        "{checks:?}"
    );

    let dir = tempfile::tempdir().unwrap();
    checkpoint::save(&model, dir.path(), checkpoint::StoredAs::Bf16).unwrap();
    let read = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.path().join(file)).unwrap()).unwrap()
    };
    for file in ["config.json", "generation_config.json"] {
        assert_eq!(read(file)["eos_token_id"], json!([96, third]), "{file}");
    }
    let again = checkpoint::load(dir.path(), &Device::flex()).unwrap();
    assert_eq!(again.config().eos_ids(), ends);
    // another model saved to the same folder leaves none of these ids
    let config: abkd_models::ModelConfig = serde_json::from_value(json!({
        "model_type": "gpt2", "vocab_size": 9, "n_positions": 4, "n_embd": 4, "n_layer": 1, "n_head": 1,
    }))
    .unwrap();
    let other = config.init(1, &Device::flex());
    checkpoint::save(&other, dir.path(), checkpoint::StoredAs::F32).unwrap();
    let again = checkpoint::load(dir.path(), &Device::flex()).unwrap();
    assert!(again.config().eos_ids().is_empty());
}

#[test]
fn a_prompt_that_is_empty_or_has_a_token_that_the_model_has_not_is_refused() {
    let model = load("gpt2-tiny");
    let decoding = Decoding {
        max_new_tokens: 2,
        ..Decoding::greedy()
    };
    for (prompt, wanted) in [
        (vec![3, 97], "example 8: token 97"),
        (vec![], "example 8: its prompt is empty"),
    ] {
        let prompts = [vec![1, 2], prompt];
        let error = generate(&model, &prompts, &[7, 8], 0, &[96], &decoding, &mut |_| {});
        let error = error.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_padded_checkpoint_is_read_without_its_padding() {
    for name in [
        "gpt2-tiny",
        "gpt2-untied",
        "llama-tiny",
        "llama-tied-tiny",
        "qwen2-tiny",
    ] {
        let whole = load(name);
        let tokens = whole.config().vocab_size();
        let padding = 7;
        let folder = Folder::of(name);
        folder.edit_tensors(|tensors| {
            let padded = ["wte.weight", "embed_tokens.weight", "lm_head.weight"];
            for (name, shape, numbers) in tensors {
                if padded.iter().any(|end| name.ends_with(end)) {
                    shape[0] += padding;
                    numbers.resize(shape[0] * shape[1], 1e4);
                }
            }
        });
        folder.edit("config.json", "vocab_size", (tokens + padding).into());
        for shard in [false, true] {
            if shard {
                folder.shard();
            }
            let device = Device::flex();
            let cut = checkpoint::load_tokens(folder.dir(), tokens, &device).unwrap();
            assert_eq!(values(&cut), values(&whole), "{name}");
            assert_eq!(cut.config(), whole.config(), "{name}");
            // More tokens than rows are left to the caller.
            let all = checkpoint::load_tokens(folder.dir(), tokens + 100, &device).unwrap();
            assert_eq!(all.config().vocab_size(), tokens + padding);
        }
        // What is saved is the small checkpoint.
        let device = Device::flex();
        let cut = checkpoint::load_tokens(folder.dir(), tokens, &device).unwrap();
        let [first, second] = [&cut, &whole].map(|model| {
            let dir = tempfile::tempdir().unwrap();
            checkpoint::save(model, dir.path(), checkpoint::StoredAs::F32).unwrap();
            ["config.json", "generation_config.json", "model.safetensors"]
                .map(|file| std::fs::read(dir.path().join(file)).unwrap())
        });
        assert_eq!(first, second, "{name}");
    }
}

#[test]
fn ends_beyond_the_vocabulary_that_is_kept_are_dropped() {
    let folder = Folder::of("gpt2-tiny");
    let tokens = load("gpt2-tiny").config().vocab_size();
    folder.edit(
        "config.json",
        "eos_token_id",
        serde_json::json!([tokens - 1, 0]),
    );
    let config = ModelConfig::read(&folder.path("config.json")).unwrap();
    assert_eq!(config.with_vocabulary(tokens - 1).eos_ids(), [0]);
}
