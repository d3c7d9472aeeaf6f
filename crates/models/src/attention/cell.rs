//! Cells of keys and values: one number, or two neighbours in bfloat16.

use abkd_host::LANES;

use super::{New, Scratch, serve, serve_head};
use crate::layers::bf16_bits;

/// A number, or two neighbours in bfloat16 that are multiplied at once.
pub(super) trait Cell: Copy + Default + Send + Sync + 'static {
    /// Numbers in a cell.
    const PER: usize;
    /// Sums in [`LANES`] lanes.
    type Lanes: Copy;

    /// From as many numbers as a cell holds.
    fn new(numbers: &[f32]) -> Self;
    /// Sets number `i`.
    fn set(&mut self, i: usize, x: f32);
    fn zero() -> Self::Lanes;
    /// `sums[j] + weight . line[j]`
    fn add(sums: Self::Lanes, weight: Self, line: &[Self; LANES]) -> Self::Lanes;
    fn floats(sums: Self::Lanes) -> [f32; LANES];

    /// A head's task, compiled for this machine.
    fn serve(
        new: &New,
        slab: (&mut [Self], &mut [Self]),
        scratch: &mut Scratch<Self>,
        out: &mut [f32],
    ) {
        serve(new, slab, scratch, out);
    }

    /// Appends numbers as cells; the last cell is padded with 0.
    #[inline(always)]
    fn cells(numbers: &[f32], cells: &mut Vec<Self>) {
        let start = cells.len();
        cells.resize(start + numbers.len().div_ceil(Self::PER), Self::default());
        let cells = &mut cells[start..];
        let whole = numbers.chunks_exact(Self::PER);
        for (i, &x) in whole.remainder().iter().enumerate() {
            cells[numbers.len() / Self::PER].set(i, x);
        }
        for (cell, numbers) in cells.iter_mut().zip(whole) {
            *cell = Self::new(numbers);
        }
    }
}

impl Cell for f32 {
    const PER: usize = 1;
    type Lanes = [f32; LANES];

    #[inline(always)]
    fn new(numbers: &[f32]) -> Self {
        numbers[0]
    }

    #[inline(always)]
    fn set(&mut self, _: usize, x: f32) {
        *self = x;
    }

    #[inline(always)]
    fn zero() -> Self::Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    fn add(mut sums: Self::Lanes, weight: Self, line: &[Self; LANES]) -> Self::Lanes {
        for j in 0..LANES {
            sums[j] = line[j].mul_add(weight, sums[j]);
        }
        sums
    }

    #[inline(always)]
    fn floats(sums: Self::Lanes) -> [f32; LANES] {
        sums
    }
}

/// The first number's bits lie in the lower half.
#[derive(Clone, Copy, Default)]
pub(super) struct Pair(u32);

impl Pair {
    #[inline(always)]
    fn halves(self) -> [f32; 2] {
        [self.0 << 16, self.0 & 0xffff_0000].map(f32::from_bits)
    }
}

impl Cell for Pair {
    const PER: usize = 2;
    type Lanes = [f32; LANES];

    #[inline(always)]
    fn new(numbers: &[f32]) -> Self {
        Self(bf16_bits(numbers[0]) | bf16_bits(numbers[1]) << 16)
    }

    #[inline(always)]
    fn set(&mut self, i: usize, x: f32) {
        let other = self.0 & (0xffff_0000 >> (16 * i));
        self.0 = other | bf16_bits(x) << (16 * i);
    }

    #[inline(always)]
    fn zero() -> Self::Lanes {
        [0.0; LANES]
    }

    #[inline(always)]
    fn add(mut sums: Self::Lanes, weight: Self, line: &[Self; LANES]) -> Self::Lanes {
        let weight = weight.halves();
        for j in 0..LANES {
            let line = line[j].halves();
            sums[j] = line[1].mul_add(weight[1], line[0].mul_add(weight[0], sums[j]));
        }
        sums
    }

    #[inline(always)]
    fn floats(sums: Self::Lanes) -> [f32; LANES] {
        sums
    }
}

/// A [`Pair`] for processors that multiply them: `vdpbf16ps`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Default)]
pub(super) struct DotPair(Pair);

#[cfg(target_arch = "x86_64")]
impl Cell for DotPair {
    const PER: usize = 2;
    type Lanes = std::arch::x86_64::__m512;

    #[inline(always)]
    fn new(numbers: &[f32]) -> Self {
        Self(Pair::new(numbers))
    }

    #[inline(always)]
    fn set(&mut self, i: usize, x: f32) {
        self.0.set(i, x);
    }

    #[inline(always)]
    fn zero() -> Self::Lanes {
        // SAFETY: all bits 0 are 16 zeros.
        unsafe { std::mem::zeroed() }
    }

    #[inline(always)]
    fn add(sums: Self::Lanes, weight: Self, line: &[Self; LANES]) -> Self::Lanes {
        use std::arch::x86_64::{__m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32};
        // SAFETY: a line is 512 bits, and any bits are valid; slabs of these cells are made only where the processor has the
        // instructions.
        unsafe {
            let pairs = |x: __m512i| std::mem::transmute(x);
            let weight = pairs(_mm512_set1_epi32(weight.0.0.cast_signed()));
            _mm512_dpbf16_ps(
                sums,
                weight,
                pairs(_mm512_loadu_si512(line.as_ptr().cast())),
            )
        }
    }

    #[inline(always)]
    fn floats(sums: Self::Lanes) -> [f32; LANES] {
        // SAFETY: both are 16 numbers.
        unsafe { std::mem::transmute(sums) }
    }

    fn serve(
        new: &New,
        slab: (&mut [Self], &mut [Self]),
        scratch: &mut Scratch<Self>,
        out: &mut [f32],
    ) {
        #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,fma,avx512bf16")]
        fn serve(
            new: &New,
            slab: (&mut [DotPair], &mut [DotPair]),
            scratch: &mut Scratch<DotPair>,
            out: &mut [f32],
        ) {
            serve_head(new, slab, scratch, out);
        }
        // SAFETY: as above.
        unsafe { serve(new, slab, scratch, out) }
    }
}
