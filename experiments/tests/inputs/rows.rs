//! Rows, methods and pairs.

use abkd_experiments::spec::Spec;
use serde_json::json;

use crate::root::{PROFILE, Root, text};

/// Edits of the experiment, and expected parts of the message.
#[test]
fn an_experiment_that_cannot_be_run_is_refused_with_its_line() {
    let fkld = "divergence = \"fkld\"";
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "name = \"small\"",
            "name = \"../small\"",
            &["small.toml:1", "letters"],
        ),
        (
            "name = \"small\"",
            "name = \"x_scores\"",
            &["small.toml:1", "_scores"],
        ),
        (
            "paper = \"table1.csv\"",
            "paper = \"table9.csv\"",
            &["small.toml:4", "table9.csv"],
        ),
        (
            "kind",
            "row_key = \"rows\"\nkind",
            &["small.toml:3", "row_key", "loss, method"],
        ),
        (
            "kind",
            "row_key = \"method\"\nkind",
            &["small.toml:3", "`loss`"],
        ),
        (
            "[\"dolly\"]",
            "[\"dolly\", \"dolly\"]",
            &["small.toml:5", "given twice"],
        ),
        (
            "[\"dolly\"]",
            "[]",
            &["small.toml:5", "`datasets` is empty"],
        ),
        (
            "seeds = [10]",
            "seeds = []",
            &["small.toml:6", "`seeds` is empty"],
        ),
        (
            "kind",
            "subject = \"FKL\"\nkind",
            &["small.toml:3", "did you mean `FKLD`"],
        ),
        ("\"FKLD\"", "\"Teacher\"", &["small.toml:9", "Teacher"]),
        ("\"FKLD\"", "\"\"", &["small.toml:9"]),
        ("\"FKLD\"", "\"a\\nb\"", &["small.toml:9"]),
        (
            fkld,
            "method = \"gkd\"\nsettings = { max_new_tokens = 100 }",
            &["small.toml:8", "196 tokens"],
        ),
        (
            fkld,
            "method = \"seqkd\"\nsettings = { max_new_tokens = 0 }",
            &["small.toml:11", "max_new_tokens = 0"],
        ),
        (
            fkld,
            "method = \"gkd\"\nsettings = { lambda = \"much\" }",
            &["small.toml:11"],
        ),
        (
            fkld,
            "method = \"minillm\"\nsettings = { temperature = nan }",
            &["small.toml:11", "temperature"],
        ),
        (
            fkld,
            "method = \"kd\"\ntrain = { lora = { r = 2, alpha = 4 } }",
            &["small.toml:11", "LoRA is built for"],
        ),
        (
            fkld,
            "divergence = \"ab\"\nparams = { alpha = inf }",
            &["small.toml:11", "alpha"],
        ),
    ];
    for (from, to, what) in cases {
        let root = Root::new();
        root.experiment(from, to);
        root.refuses(what);
    }
}

#[test]
fn a_row_wins_over_the_profiles_settings_of_its_method() {
    let root = Root::new();
    root.experiment(
        "divergence = \"fkld\"",
        "method = \"gkd\"\nsettings = { lambda = 0.75 }\ntrain = { epochs = 3, batch_size = 4 }",
    );
    let own = "[methods.gkd]\nsettings = { lambda = 0.25, capacity = 77 }\ntrain = { epochs = 2, weight_decay = 0.5 }\n";
    root.profile("[validation]", &format!("{own}[validation]"));
    let spec = Spec::load(root.dir.path(), "small", "ok").unwrap();
    let row = &spec.recipes[0];
    let method = serde_json::to_value(&row.method).unwrap();
    assert_eq!(
        (
            &method["settings"]["lambda"],
            &method["settings"]["capacity"]
        ),
        (&json!(0.75), &json!(77))
    );
    let train = &row.settings;
    assert_eq!(
        (train.epochs, train.batch_size, train.weight_decay),
        (3, 4, 0.5)
    );
}

#[test]
fn a_seed_that_the_profiles_list_would_replace_is_refused() {
    let root = Root::new();
    root.experiment(
        "divergence = \"fkld\"",
        "method = \"kd\"\ntrain = { seed = 5 }",
    );
    let spec = Spec::load(root.dir.path(), "small", "ok").unwrap();
    assert_eq!(spec.recipes[0].seeds, [5]);
    root.profile("[data]", "training_seeds = [1, 2]\n[data]");
    root.refuses(&["small.toml:11", "`seed`", "ok.toml:3"]);
    let root = Root::new();
    root.profile("[data]", "training_seeds = [1, 2]\n[data]");
    root.profile("[validation]", "[methods.kd.train]\nseed = 5\n[validation]");
    root.refuses(&["ok.toml:27", "`seed`", "ok.toml:3"]);
}

#[test]
fn what_a_method_has_no_use_for_is_refused() {
    let fkld = "divergence = \"fkld\"";
    let root = Root::new();
    root.experiment(fkld, "divergence = \"fkld\"\nkd_ratio = 0.25");
    let spec = Spec::load(root.dir.path(), "small", "ok").unwrap();
    assert_eq!(spec.recipes[0].kd_ratio, 0.25);
    root.experiment("0.25", "1.25");
    root.refuses(&["small.toml:11", "kd_ratio = 1.25", "between 0 and 1"]);
    root.experiment("kd_ratio = 1.25", "train = { masses = true }");
    assert!(Spec::load(root.dir.path(), "small", "ok").is_ok());
    root.experiment(fkld, "method = \"sft\"");
    root.refuses(&["small.toml:11", "`masses`", "has none"]);
    root.experiment("train = { masses = true }", "kd_ratio = 0.5");
    root.refuses(&["small.toml:11", "kd_ratio = 0.5", "method `sft`"]);
    let root = Root::new();
    root.profile("[student_sft]", "[student_sft]\nmasses = true");
    root.refuses(&["ok.toml:17", "`masses`", "has none"]);
}

#[test]
fn an_experiments_training_seeds_win() {
    let root = Root::new();
    root.profile("[data]", "training_seeds = [1, 2]\n[data]");
    root.experiment("kind", "training_seeds = [3]\nkind");
    let spec = Spec::load(root.dir.path(), "small", "ok").unwrap();
    assert_eq!(spec.recipes[0].seeds, [3]);
    root.experiment("[3]", "[3, 3]");
    root.refuses(&["small.toml:3", "`training_seeds`", "seed 3 is given twice"]);
    root.experiment("[3, 3]", "[]");
    root.refuses(&["small.toml:3", "`training_seeds` is empty"]);
}

#[test]
fn pairs_are_known_by_name_and_checked_whether_asked_for_or_not() {
    let with = |pair: &str, profile: &str| {
        let root = Root::new();
        root.experiment("kind", &format!("pair = \"{pair}\"\nkind"));
        root.write(
            "experiments/profiles/ok.toml",
            &format!("{PROFILE}{profile}"),
        );
        root
    };
    let pair =
        "[pairs.llama.distill]\nepochs = 2\n[pairs.llama.methods.gkd.settings]\ncapacity = 9\n";
    let root = with("lama", pair);
    root.refuses(&["small.toml:3", "lama", "did you mean `llama`"]);
    let root = with("llama", "");
    let plan = root.abkd("plan");
    assert!(
        plan.status.success() && text(&plan).contains("one pair of models"),
        "{}",
        text(&plan)
    );
    // a mistake in a pair is blamed on its line
    let cases: &[(&str, &[&str])] = &[
        (
            "[pairs.llama.distill]\nepochs = 0\n",
            &["ok.toml:31", "epochs"],
        ),
        (
            "[pairs.llama.distill]\nepochz = 2\n",
            &["ok.toml:30", "`epochs`"],
        ),
        ("[pairs.llama]\nname = \"x\"\n", &["ok.toml:31", "name"]),
        (
            "[pairs.llama.evaluation]\ntop_p = 2.0\n",
            &["ok.toml:31", "top_p"],
        ),
    ];
    for (wrong, what) in cases {
        with("llama", wrong).refuses(what);
        let root = Root::new();
        root.write("experiments/profiles/ok.toml", &format!("{PROFILE}{wrong}"));
        root.refuses(&what[..1]);
    }
    // a pair adds to a method's settings
    let root = with(
        "llama",
        &format!("{pair}[methods.gkd.settings]\nlambda = 0.25\n"),
    );
    let spec = Spec::load(root.dir.path(), "small", "ok").unwrap();
    let settings = &spec.profile.methods["gkd"].settings;
    assert_eq!(settings["lambda"].as_float(), Some(0.25));
    assert_eq!(settings["capacity"].as_integer(), Some(9));
    assert_eq!(spec.profile.distill.epochs, 2);
}
