//! The teacher's last hidden states of every response row of the data, computed once.
//!
//! They are a function of (teacher, sequence) alone, so one file serves all losses and epochs of an
//! experiment; a step then runs only the teacher's head. `hidden.bin` holds the rows, `hidden.json` lists
//! their examples, and a seal proves that both files are complete and belong to the key.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use abkd_data::{Batch, Sequence, collate};
use abkd_host::chunks::{self, Chunks};
use abkd_host::seal::{self, Seal};
use abkd_host::{fault, files};
use abkd_models::LanguageModel;
use burn::tensor::{Device, Tensor, TensorData};
use half::bf16;
use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::step::target_rows;

/// How the rows are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// 4 bytes per value, exact.
    #[default]
    F32,
    /// 2 bytes per value, rounded to nearest.
    Bf16,
    /// No cache: the teacher runs in every step.
    Off,
}

impl CacheMode {
    /// Bytes per value; 0 without a cache.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Off => 0,
        }
    }
}

/// Content of `hidden.json`.
#[derive(Serialize, Deserialize)]
struct Header {
    mode: CacheMode,
    width: usize,
    /// Examples, in the order of their rows in `hidden.bin`.
    examples: Vec<usize>,
    /// Number of response rows of each example.
    rows: Vec<usize>,
    /// Time to compute the rows, over all attempts.
    seconds: f64,
}

/// Smallest unit that the system reads from a mapped file, bytes.
const PAGE: usize = 4096;
/// Name of the file of the rows.
pub const ROWS: &str = "hidden.bin";
const HEADER: &str = "hidden.json";

/// Rows of a teacher, read from the disk as they are needed.
pub struct TeacherCache {
    rows: Mmap,
    mode: CacheMode,
    width: usize,
    /// First row and number of rows, by example.
    places: HashMap<usize, (usize, usize)>,
    path: PathBuf,
}

/// Result of [`write()`].
pub struct Written {
    /// Time to compute the rows, over all attempts.
    pub seconds: f64,
    /// Bytes of earlier attempts that did not match their checksums and were recomputed.
    pub dropped: u64,
    /// The seal of the folder.
    pub seal: Seal,
}

/// Computes and writes the rows of all `sequences`. `None` when `stop` was set; the next call resumes
/// there. `key` identifies teacher, tokenizer and data.
///
/// # Errors
///
/// When the folder cannot be written; with [`CacheMode::Off`].
#[allow(clippy::too_many_arguments)]
pub fn write(
    dir: &Path,
    key: &str,
    teacher: &LanguageModel,
    sequences: &[Sequence],
    batch_size: usize,
    mode: CacheMode,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(usize),
) -> Result<Option<Written>, Error> {
    if mode == CacheMode::Off {
        return Err(Error::setting("mode", "off", "there are no rows to write"));
    }
    files::create_folder(dir).map_err(Error::io(dir))?;
    let target = dir.join(ROWS);
    if let Ok((seal, header)) = read(dir, key) {
        // Left by an attempt that was killed after it wrote the seal.
        chunks::forget(&target)?;
        progress(sequences.len());
        return Ok(Some(Written {
            seconds: header.seconds,
            dropped: 0,
            seal,
        }));
    }
    let width = teacher.config().width();
    // Batches of similar lengths, in an order that does not depend on where an earlier attempt stopped.
    let mut order: Vec<&Sequence> = sequences.iter().collect();
    order.sort_by_key(|s| (s.tokens.len(), s.example));
    let rows_of = |s: &Sequence| s.tokens.len() - s.prompt_len;
    let batches: Vec<&[&Sequence]> = order.chunks(batch_size).collect();
    let mut chunks = Chunks::open(&target, key, &mut |index, bytes| {
        let rows = |batch: &&[&Sequence]| batch.iter().map(|s| rows_of(s)).sum::<usize>();
        batches.get(index).map(rows) == Some(bytes.len() / (width * mode.bytes()))
    })?;
    progress(batches.iter().take(chunks.count()).map(|b| b.len()).sum());
    for batch in &batches[chunks.count()..] {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let begun = Instant::now();
        let hidden = target_rows(teacher, &collate(batch)).into_data_as::<f32>();
        let values = hidden.as_slice::<f32>().expect("converted to f32 above");
        let bytes: Vec<u8> = match mode {
            CacheMode::Bf16 => values
                .iter()
                .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
                .collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        chunks.append(&bytes, begun.elapsed().as_secs_f64())?;
        progress(batch.len());
    }
    let (seconds, dropped) = (chunks.seconds(), chunks.dropped());
    let header = Header {
        mode,
        width,
        examples: order.iter().map(|s| s.example).collect(),
        rows: order.iter().map(|s| rows_of(s)).collect(),
        seconds,
    };
    let mut seal = Seal::new(dir, key);
    let text = serde_json::to_vec(&header).map_err(|e| Error::checkpoint(dir.join(HEADER), e))?;
    seal.write(HEADER, &text)?;
    seal.add(ROWS, chunks.finish()?);
    let seal = seal.close()?;
    chunks::forget(&target)?;
    Ok(Some(Written {
        seconds,
        dropped,
        seal,
    }))
}

/// Reads and checks the seal, the header and the size of the rows.
fn read(dir: &Path, key: &str) -> Result<(Seal, Header), seal::Error> {
    let seal = Seal::open(dir, key)?;
    let text = seal.read(HEADER)?;
    let path = seal.check(ROWS)?;
    let header: Header = serde_json::from_slice(&text).map_err(|e| seal::Error::Broken {
        path: dir.join(HEADER),
        reason: e.to_string(),
    })?;
    let total: usize = header.rows.iter().sum();
    let bytes = total * header.width * header.mode.bytes();
    let found = path.metadata().map_err(seal::Error::io(&path))?.len();
    if found != bytes as u64 {
        let reason = format!("{found} bytes, but {HEADER} expects {bytes}");
        return Err(seal::Error::Broken { path, reason });
    }
    Ok((seal, header))
}

impl TeacherCache {
    /// Opens and checks the rows that [`write()`] left in `dir`.
    ///
    /// # Errors
    ///
    /// Files that are missing, truncated, changed or of another key.
    pub fn open(dir: &Path, key: &str) -> Result<Self, Error> {
        let again = format!("remove {} to recompute it", dir.display());
        let (_, header) = read(dir, key).map_err(|error| Error::untrusted(error, &again))?;
        let path = dir.join(ROWS);
        let file = File::open(&path).map_err(Error::io(&path))?;
        // SAFETY: the file is only read; no other program may change it meanwhile.
        let rows = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        let mut first = 0;
        let places = header
            .examples
            .iter()
            .zip(&header.rows)
            .map(|(&example, &n)| {
                first += n;
                (example, (first - n, n))
            })
            .collect();
        Ok(Self {
            rows,
            mode: header.mode,
            width: header.width,
            places,
            path,
        })
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.rows.len()
    }

    /// Prefetches the rows of a batch from the disk, so that [`rows`](Self::rows) finds them in memory.
    pub(crate) fn fetch(&self, batch: &Batch) {
        let row = self.width * self.mode.bytes();
        for (first, n) in batch.examples.iter().filter_map(|e| self.places.get(e)) {
            let bytes = &self.rows[first * row..(first + n) * row];
            for byte in bytes.iter().step_by(PAGE).chain(bytes.last()) {
                std::hint::black_box(*byte);
            }
        }
    }

    /// The rows of a batch of the data: `[N, d]`.
    ///
    /// # Errors
    ///
    /// A sequence that is not in the cache, or that has another length there.
    pub fn rows(&self, batch: &Batch, device: &Device) -> Result<Tensor<2>, Error> {
        let n = batch.targets.len();
        let mut values: Vec<f32> = Vec::with_capacity(n * self.width);
        for (example, targets) in batch.examples.iter().zip(batch.targets_by_sequence()) {
            let wanted = targets.len();
            let Some((first, _)) = self.places.get(example).filter(|(_, n)| *n == wanted) else {
                return Err(Error::checkpoint(
                    &self.path,
                    format!("example {example} with {wanted} response rows is not in it"),
                ));
            };
            let size = self.mode.bytes();
            let first = fault!("cache of the row before", *first, first.saturating_sub(1));
            let start = first * self.width * size;
            let bytes = &self.rows[start..start + wanted * self.width * size];
            match self.mode {
                CacheMode::Bf16 => values.extend(
                    bytes
                        .as_chunks::<2>()
                        .0
                        .iter()
                        .map(|b| bf16::from_le_bytes(*b).to_f32()),
                ),
                _ => values.extend(
                    bytes
                        .as_chunks::<4>()
                        .0
                        .iter()
                        .map(|b| f32::from_le_bytes(*b)),
                ),
            }
        }
        Ok(Tensor::from_data(
            TensorData::new(values, [n, self.width]),
            device,
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use abkd_models::ModelConfig;

    use super::*;

    fn teacher(seed: u64) -> LanguageModel {
        let config: ModelConfig = serde_json::from_str(
            r#"{"model_type":"gpt2","vocab_size":20,"n_positions":16,"n_embd":8,"n_layer":1,"n_head":2}"#,
        )
        .unwrap();
        config.init(seed, &Device::flex())
    }

    fn sequences() -> Vec<Sequence> {
        (0..7)
            .map(|i| Sequence {
                example: 2 * i,
                tokens: (0..5 + i as u32).collect(),
                prompt_len: 2,
            })
            .collect()
    }

    fn fill(dir: &Path, mode: CacheMode, stop: &AtomicBool) -> bool {
        let mut calls = 0;
        write(
            dir,
            "key",
            &teacher(1),
            &sequences(),
            2,
            mode,
            stop,
            &mut |_| {
                calls += 1;
                if calls == 3 {
                    // after two chunks: stops the first run
                    stop.fetch_not(Ordering::Relaxed);
                }
            },
        )
        .unwrap()
        .is_some()
    }

    #[test]
    fn rows_are_the_teachers_and_a_stopped_run_goes_on() {
        let device = Device::flex();
        let data = sequences();
        let chosen: Vec<&Sequence> = [5, 0, 3].iter().map(|&i| &data[i]).collect();
        let laid = collate(&chosen);
        let exact = target_rows(&teacher(1), &laid);
        for (mode, tolerance) in [(CacheMode::F32, 1e-6), (CacheMode::Bf16, 2e-2)] {
            let dir = tempfile::tempdir().unwrap();
            let stop = AtomicBool::new(false);
            assert!(!fill(dir.path(), mode, &stop));
            stop.store(false, Ordering::Relaxed);
            // the third call of `progress` sets `stop` again, but all chunks are done by then
            while !fill(dir.path(), mode, &stop) {
                stop.store(false, Ordering::Relaxed);
            }
            let cache = TeacherCache::open(dir.path(), "key").unwrap();
            let rows = cache.rows(&laid, &device).unwrap();
            let error: f32 = (rows - exact.clone()).abs().max().into_scalar();
            assert!(error < tolerance, "{error}");
        }
    }

    #[test]
    fn without_a_cache_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (teacher, stop, off) = (teacher(1), AtomicBool::new(false), CacheMode::Off);
        let sequences = sequences();
        let written = write(
            dir.path(),
            "key",
            &teacher,
            &sequences,
            2,
            off,
            &stop,
            &mut |_| {},
        );
        let error = written.err().unwrap().to_string();
        assert!(error.contains("`mode` = off"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_not_its_own_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(true);
        while !fill(dir.path(), CacheMode::F32, &stop) {
            stop.store(false, Ordering::Relaxed);
        }
        let error = |key: &str| {
            TeacherCache::open(dir.path(), key)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(error("other").contains("belongs to key"));
        for name in [HEADER, ROWS, seal::SEAL] {
            let path = dir.path().join(name);
            let content = fs::read(&path).unwrap();
            for at in 0..content.len() {
                let mut changed = content.clone();
                changed[at] ^= 1;
                fs::write(&path, changed).unwrap();
                let text = error("key");
                assert!(text.contains("remove "), "{name}, byte {at}: {text}");
            }
            fs::write(&path, &content[..content.len() - 1]).unwrap();
            assert!(error("key").contains("damaged"));
            fs::remove_file(&path).unwrap();
            assert!(error("key").contains("missing"));
            fs::write(&path, content).unwrap();
        }
        let path = dir.path().join(ROWS);
        let mut bytes = fs::read(&path).unwrap();
        bytes[17] ^= 1;
        fs::write(&path, &bytes).unwrap();

        // A damaged cache is written again; an intact one is kept.
        let made = |stop: &AtomicBool| {
            stop.store(false, Ordering::Relaxed);
            while !fill(dir.path(), CacheMode::F32, stop) {
                stop.store(false, Ordering::Relaxed);
            }
            TeacherCache::open(dir.path(), "key").unwrap()
        };
        drop(made(&stop));
        bytes[17] ^= 1;
        assert!(fs::read(&path).unwrap() == bytes);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        fs::write(path.with_added_extension("sums"), "").unwrap();
        let cache = made(&stop);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let stranger = Sequence {
            example: 1,
            tokens: vec![1, 2, 3],
            prompt_len: 2,
        };
        let rows = cache.rows(&collate(&[&stranger]), &Device::flex());
        assert!(rows.unwrap_err().to_string().contains("example 1"));
    }
}
