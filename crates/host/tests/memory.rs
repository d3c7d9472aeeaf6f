//! Freed memory stays with the process, in every thread. This program has no test harness, because the harness would start
//! threads before the allocator is set.

fn main() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        glibc::a_thread_gets_its_pages_once();
        glibc::gaps_between_blocks_do_not_pile_up();
    }
    println!("2 passed, 0 failed");
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    pub fn a_thread_gets_its_pages_once() {
        abkd_host::keep_freed_memory();
        let counts = std::thread::spawn(|| [update(), update(), update()]);
        let [first, second, third] = counts.join().unwrap();
        assert!(
            first > 100_000,
            "{first} pages: the blocks were not touched"
        );
        assert!(
            second < 100 && third < 100,
            "{first}, then {second} and {third} pages: freed memory went back to the system"
        );
    }

    /// Each update leaves a gap before a block that stays, and the next one does not fit into it.
    pub fn gaps_between_blocks_do_not_pile_up() {
        let mut kept = abkd_host::KeptMemory::begin();
        let mut stay = Vec::new();
        for i in 0..60 {
            let size = (16 << 20) + (i << 16);
            let (block, mut beside) = (vec![1u8; size], vec![1u8; size]);
            std::hint::black_box((&block, &beside));
            beside.truncate(1 << 12);
            beside.shrink_to_fit();
            stay.push(beside);
            drop(block);
            kept.after_update();
        }
        let end = resident() >> 20;
        assert!(end < 300, "{end} MiB, and an update takes 32 to 40");
    }

    /// Memory of this process in bytes.
    fn resident() -> usize {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() << 12
    }

    /// Touches each page of some large blocks, as an update does, and frees them. Returns the pages that were given for it.
    fn update() -> i64 {
        let before = faults();
        let blocks: Vec<Vec<u8>> = (1..9).map(|i| vec![i; usize::from(i) << 24]).collect();
        std::hint::black_box(&blocks);
        drop(blocks);
        faults() - before
    }

    /// Pages that the system gave to this thread so far.
    fn faults() -> i64 {
        // SAFETY: the structure is written before it is read.
        unsafe {
            let mut usage = std::mem::zeroed::<libc::rusage>();
            assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
            usage.ru_minflt
        }
    }
}
