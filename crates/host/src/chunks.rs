//! A file that is written chunk by chunk. If an attempt is killed, the next one resumes it.
//!
//! `<name>.partial` holds the chunks, `<name>.sums` one line per chunk: its length, the seconds spent so far, and a checksum
//! of the task, of the line and of all chunks so far. The next attempt keeps the chunks that match their checksums and cuts
//! off the rest, so nothing needs to be synchronised before the end.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files;
use crate::seal::{Error, Proof};

/// A line of `<name>.sums`.
#[derive(Serialize, Deserialize)]
struct Sum {
    bytes: u64,
    seconds: f64,
    sha256: String,
}

/// A file that is being written.
pub struct Chunks {
    data: File,
    sums: File,
    paths: Paths,
    task: String,
    /// Hash of all chunks so far.
    hasher: Sha256,
    count: usize,
    bytes: u64,
    seconds: f64,
    dropped: u64,
}

struct Paths {
    target: PathBuf,
    partial: PathBuf,
    sums: PathBuf,
}

impl Paths {
    fn new(target: &Path) -> Self {
        Self {
            target: target.into(),
            partial: target.with_added_extension("partial"),
            sums: target.with_added_extension("sums"),
        }
    }
}

impl Chunks {
    /// Resumes the file `target` of `task`. `accept` gets the index and the bytes of each chunk that matches its checksum;
    /// the first chunk that it refuses and all after it are dropped.
    ///
    /// # Errors
    ///
    /// When the files cannot be read or written.
    pub fn open(
        target: &Path,
        task: &str,
        accept: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<Self, Error> {
        let paths = Paths::new(target);
        // An attempt was killed between the rename and the seal.
        if !paths.partial.exists() && paths.target.exists() {
            fs::rename(&paths.target, &paths.partial).map_err(Error::io(&paths.partial))?;
        }
        let open = |path: &Path| files::open_to_extend(path).map_err(Error::io(path));
        let (data, sums) = (open(&paths.partial)?, open(&paths.sums)?);
        let there = data.metadata().map_err(Error::io(&paths.partial))?.len();
        let mut chunks = Self {
            data,
            sums,
            task: task.into(),
            hasher: Sha256::new(),
            count: 0,
            bytes: 0,
            seconds: 0.0,
            dropped: 0,
            paths,
        };
        let lines = files::read(&chunks.paths.sums, files::TEXT_LIMIT)
            .map_err(Error::io(&chunks.paths.sums))?;
        let mut kept = 0;
        for line in lines.split_inclusive(|&b| b == b'\n') {
            if !chunks.take(line, there - chunks.bytes, accept)? {
                break;
            }
            kept += line.len() as u64;
        }
        chunks.dropped = there - chunks.bytes;
        for (file, length, path) in [
            (&mut chunks.data, chunks.bytes, &chunks.paths.partial),
            (&mut chunks.sums, kept, &chunks.paths.sums),
        ] {
            file.set_len(length)
                .and_then(|()| file.seek(SeekFrom::Start(length)))
                .map_err(Error::io(path))?;
        }
        Ok(chunks)
    }

    /// Accepts the next chunk if it matches its line of `<name>.sums`.
    fn take(
        &mut self,
        line: &[u8],
        left: u64,
        accept: &mut dyn FnMut(usize, &[u8]) -> bool,
    ) -> Result<bool, Error> {
        let Ok(sum) = serde_json::from_slice::<Sum>(line) else {
            return Ok(false);
        };
        if sum.bytes > left || !line.ends_with(b"\n") {
            return Ok(false);
        }
        let mut chunk = Vec::new();
        (&mut self.data)
            .take(sum.bytes)
            .read_to_end(&mut chunk)
            .map_err(Error::io(&self.paths.partial))?;
        let mut hasher = self.hasher.clone();
        hasher.update(&chunk);
        let fits = chunk.len() as u64 == sum.bytes
            && self.digest(&hasher, sum.bytes, sum.seconds) == sum.sha256;
        if !fits || !accept(self.count, &chunk) {
            return Ok(false);
        }
        self.hasher = hasher;
        self.count += 1;
        self.bytes += sum.bytes;
        self.seconds = sum.seconds;
        Ok(true)
    }

    /// Appends a chunk that took this number of seconds.
    ///
    /// # Errors
    ///
    /// When it cannot be written; the next attempt resumes before this chunk.
    pub fn append(&mut self, chunk: &[u8], seconds: f64) -> Result<(), Error> {
        let bytes = chunk.len() as u64;
        self.hasher.update(chunk);
        self.seconds += seconds;
        let sum = Sum {
            bytes,
            seconds: self.seconds,
            sha256: self.digest(&self.hasher, bytes, self.seconds),
        };
        let line = serde_json::to_string(&sum).expect("numbers and digits") + "\n";
        let written = self.data.write_all(chunk);
        written.map_err(Error::io(&self.paths.partial))?;
        let written = self.sums.write_all(line.as_bytes());
        written.map_err(Error::io(&self.paths.sums))?;
        self.count += 1;
        self.bytes += bytes;
        Ok(())
    }

    /// Chunks so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Seconds spent on them, over all attempts.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Bytes of earlier attempts that were dropped: torn, without a matching checksum, or of another task.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Renames the file to its final name. `<name>.sums` stays until [`forget`]: a kill before the file is sealed loses
    /// nothing.
    ///
    /// # Errors
    ///
    /// When it cannot be synchronised or renamed.
    pub fn finish(self) -> Result<Proof, Error> {
        let Self { paths, .. } = &self;
        let written = files::publish(&paths.partial, &paths.target, &[]);
        written.map_err(Error::io(&paths.target))?;
        Ok(Proof {
            bytes: self.bytes,
            sha256: files::hex(&self.hasher.finalize()),
        })
    }

    fn digest(&self, all: &Sha256, bytes: u64, seconds: f64) -> String {
        let mut hasher = Sha256::new();
        hasher.update((self.task.len() as u64).to_le_bytes());
        hasher.update(&self.task);
        hasher.update(bytes.to_le_bytes());
        hasher.update(seconds.to_bits().to_le_bytes());
        hasher.update(all.clone().finalize());
        files::hex(&hasher.finalize())
    }
}

/// Removes the files that only an unfinished file needs.
///
/// # Errors
///
/// When it cannot be removed.
pub fn forget(target: &Path) -> Result<(), Error> {
    let Paths { partial, sums, .. } = Paths::new(target);
    for path in [partial, sums] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(Error::io(path))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKS: [&[u8]; 3] = [b"one", b"", b"three"];

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("abkd-chunks-{}-{name}", std::process::id()));
        files::create_folder(&folder).unwrap();
        folder
    }

    fn open(target: &Path, task: &str) -> Chunks {
        Chunks::open(target, task, &mut |i, chunk| {
            assert_eq!(chunk, CHUNKS[i]);
            true
        })
        .unwrap()
    }

    fn begun(target: &Path) {
        forget(target).unwrap();
        let mut chunks = open(target, "task");
        assert_eq!(chunks.count(), 0);
        for chunk in CHUNKS {
            chunks.append(chunk, 0.5).unwrap();
        }
    }

    #[test]
    fn a_next_attempt_goes_on_and_the_file_is_that_of_one() {
        let target = folder("on").join("x");
        for stop in 0..=CHUNKS.len() {
            let mut chunks = open(&target, "task");
            for chunk in &CHUNKS[..stop] {
                chunks.append(chunk, 0.5).unwrap();
            }
            drop(chunks);
            let mut chunks = open(&target, "task");
            assert_eq!((chunks.count(), chunks.dropped()), (stop, 0));
            for chunk in &CHUNKS[stop..] {
                chunks.append(chunk, 0.5).unwrap();
            }
            assert_eq!(chunks.seconds(), 1.5);
            assert_eq!(chunks.finish().unwrap(), Proof::of(b"onethree"));
            assert_eq!(fs::read(&target).unwrap(), b"onethree");
            // Killed before it was sealed.
            let again = open(&target, "task");
            assert_eq!(again.count(), 3);
            again.finish().unwrap();
            forget(&target).unwrap();
            fs::remove_file(&target).unwrap();
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_from_there_on() {
        let target = folder("damage").join("x");
        let with = |end: &str| target.with_added_extension(end);
        begun(&target);
        let (data, sums) = (with("partial"), with("sums"));
        let content = [fs::read(&data).unwrap(), fs::read(&sums).unwrap()];
        let lines: Vec<usize> = content[1]
            .split_inclusive(|&b| b == b'\n')
            .map(<[u8]>::len)
            .collect();
        let count = |damage: &dyn Fn(&mut [Vec<u8>; 2])| {
            let mut changed = content.clone();
            damage(&mut changed);
            fs::write(&data, &changed[0]).unwrap();
            fs::write(&sums, &changed[1]).unwrap();
            open(&target, "task").count()
        };
        assert_eq!(count(&|_| ()), 3);
        assert_eq!(count(&|c| c[0][2] ^= 1), 0);
        assert_eq!(count(&|c| c[0][3] ^= 1), 2);
        assert_eq!(count(&|c| c[0].truncate(7)), 2);
        assert_eq!(count(&|c| c[0].clear()), 0);
        assert_eq!(count(&|c| c[0].extend(b"torn")), 3);
        assert_eq!(count(&|c| c[1].truncate(lines[0] + lines[1] - 1)), 1);
        assert_eq!(count(&|c| c[1].clear()), 0);
        for at in 0..content[1].len() {
            // No line is accepted with another length, time or checksum.
            let kept = count(&|c| c[1][at] ^= 1);
            let whole = [lines[0], lines[0] + lines[1]];
            let before = whole.iter().filter(|&&end| end <= at).count();
            assert_eq!(kept, before, "byte {at}");
        }
        assert_eq!(open(&target, "another").count(), 0);
        let mut none = Chunks::open(&target, "task", &mut |_, _| false).unwrap();
        assert_eq!(none.count(), 0);
        none.append(b"one", 0.0).unwrap();
        drop(none);
        assert_eq!(open(&target, "task").count(), 1);
    }
}
