//! Memory of the process: freed memory is kept for the next update, within bounds.

/// Keeps freed memory for later allocations instead of returning it to the system: every update allocates the same gigabytes
/// again, and the system clears fresh pages one by one. Called at program start, before there are other threads; has an
/// effect with glibc only.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets parameters of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
        // Other threads than the first would get arenas of their own, which give large blocks back whatever the thresholds.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns freed memory to the system, also from between blocks that are in use. Has an effect with glibc only.
pub fn return_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim only gives up pages of free blocks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the memory of a training that [`keep_freed_memory`] holds within bounds. The blocks of an update differ in size from those
/// of the one before, and leave gaps that only smaller ones fill, so the process would grow with every update: to 13 GB in 240
/// updates of SmolLM2-135M that use 2 GB.
pub struct KeptMemory {
    /// The largest number of bytes after an update that began without freed memory.
    needed: usize,
    /// Whether freed memory was returned since.
    returned: bool,
}

impl KeptMemory {
    /// Called before the first update: returns what was freed by then.
    pub fn begin() -> Self {
        return_freed_memory();
        Self {
            needed: 0,
            returned: true,
        }
    }

    /// Called after each update: returns freed memory when the process has half as much again as it needs.
    pub fn after_update(&mut self) {
        let Some(now) = resident_memory() else { return };
        if self.returned {
            self.needed = self.needed.max(now);
            self.returned = false;
        } else if now > self.needed + self.needed / 2 {
            return_freed_memory();
            self.returned = true;
        }
    }
}

/// Memory that this process has now, in bytes, on Linux.
fn resident_memory() -> Option<usize> {
    status("VmRSS")
}

/// Peak memory of this process in bytes, on Linux.
pub fn peak_memory() -> Option<usize> {
    status("VmHWM")
}

fn status(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
