//! Some rows times a panel: the inner loops.

#[cfg(target_arch = "x86_64")]
use super::GROUPS;
use super::{ROWS, Sums, WIDTH};

/// In f32, for pulp's instruction sets.
pub(super) struct F32Product<'a> {
    pub x: [&'a [f32]; ROWS],
    pub panel: &'a [[f32; WIDTH]],
    pub sums: &'a mut Sums,
}

impl pulp::WithSimd for F32Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(mut self, simd: S) {
        // Two vectors of a panel's columns at a time.
        for first in (0..WIDTH / S::F32_LANES).step_by(2) {
            if S::REGISTER_COUNT >= 32 {
                self.columns::<S, ROWS>(simd, first, 0);
            } else {
                for row in (0..ROWS).step_by(ROWS / 2) {
                    self.columns::<S, { ROWS / 2 }>(simd, first, row);
                }
            }
        }
    }
}

impl F32Product<'_> {
    /// Two vectors of columns for the R rows from `row` on.
    #[inline(always)]
    fn columns<S: pulp::Simd, const R: usize>(&mut self, simd: S, first: usize, row: usize) {
        let depth = self.panel.len();
        let rows: [&[f32]; R] = std::array::from_fn(|r| &self.x[row + r][..depth]);
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for (i, line) in self.panel.iter().enumerate() {
            let line = S::as_simd_f32s(line).0;
            for r in 0..R {
                // SAFETY: every row has as many numbers as the panel has lines.
                let x = simd.splat_f32s(unsafe { *rows[r].get_unchecked(i) });
                for v in 0..2 {
                    sums[r][v] = simd.mul_add_f32s(x, line[first + v], sums[r][v]);
                }
            }
        }
        for (out, sums) in self.sums[row..row + R].iter_mut().zip(sums) {
            S::as_mut_simd_f32s(out).0[first..first + 2].copy_from_slice(&sums);
        }
    }
}

/// The sums, rounded. Meanwhile an eighth of a panel from `ahead` on is prefetched.
#[cfg(target_arch = "x86_64")]
pub(super) fn bf16_product(
    x: [&[u16]; ROWS],
    panel: &[[u32; WIDTH]],
    ahead: Option<*const [u32; WIDTH]>,
    sums: &mut Sums,
) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_dpbf16_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps,
    };

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn product<const ASK: bool>(
        x: [&[u16]; ROWS],
        panel: &[[u32; WIDTH]],
        ahead: *const [u32; WIDTH],
        out: &mut Sums,
    ) {
        // SAFETY: both are 512 bits, and any bits are valid.
        let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        let rows = x.map(|x| x[..2 * panel.len()].as_ptr().cast::<i32>());
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (i, line) in panel.iter().enumerate() {
            // A line of a panel is two cache lines: each of the eight groups prefetches depth / 4 cache lines.
            if ASK && i.is_multiple_of(GROUPS / 2) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast::<i8>().wrapping_add(64 * i / (GROUPS / 2)));
            }
            // SAFETY: a line is 32 numbers of 32 bits, two vectors.
            let line = unsafe {
                [
                    pairs(_mm512_loadu_si512(line.as_ptr().cast())),
                    pairs(_mm512_loadu_si512(line.as_ptr().add(16).cast())),
                ]
            };
            for r in 0..ROWS {
                // SAFETY: every row has two numbers for each line of the panel.
                let x = pairs(_mm512_set1_epi32(unsafe {
                    rows[r].add(i).read_unaligned()
                }));
                for v in 0..2 {
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], x, line[v]);
                }
            }
        }
        put_rounded(sums, out);
    }
    // SAFETY: panels of pairs are made only where the processor has both features.
    unsafe {
        match ahead {
            Some(ahead) => product::<true>(x, panel, ahead, sums),
            None => product::<false>(x, panel, panel.as_ptr(), sums),
        }
    }
}

/// [`bf16_product`] of factors in f32, with the same sums: their products are exact, and `vdpbf16ps` adds the odd one first.
#[cfg(target_arch = "x86_64")]
pub(super) fn pairs_product(
    x: [&[f32]; ROWS],
    panel: &[[u32; WIDTH]],
    ahead: Option<*const [u32; WIDTH]>,
    sums: &mut Sums,
) {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castsi512_ps, _mm512_fmadd_ps,
        _mm512_loadu_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_slli_epi32,
    };

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn product<const ASK: bool>(
        x: [&[f32]; ROWS],
        panel: &[[u32; WIDTH]],
        ahead: *const [u32; WIDTH],
        out: &mut Sums,
    ) {
        let rows = x.map(|x| x[..2 * panel.len()].as_ptr());
        let upper = _mm512_set1_epi32(!0xffff);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (i, line) in panel.iter().enumerate() {
            if ASK && i.is_multiple_of(GROUPS / 2) {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast::<i8>().wrapping_add(64 * i / (GROUPS / 2)));
            }
            // SAFETY: a line is 32 numbers of 32 bits, two vectors.
            let line = unsafe {
                [
                    _mm512_loadu_si512(line.as_ptr().cast()),
                    _mm512_loadu_si512(line.as_ptr().add(16).cast()),
                ]
            };
            let odd = line.map(|l| _mm512_castsi512_ps(_mm512_and_si512(l, upper)));
            let even = line.map(|l| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(l)));
            for (place, line) in [(2 * i + 1, odd), (2 * i, even)] {
                for r in 0..ROWS {
                    // SAFETY: every row has two numbers for each line of the panel.
                    let x = _mm512_set1_ps(unsafe { *rows[r].add(place) });
                    for v in 0..2 {
                        sums[r][v] = _mm512_fmadd_ps(x, line[v], sums[r][v]);
                    }
                }
            }
        }
        put_rounded(sums, out);
    }
    // SAFETY: panels of pairs are made only where the processor has both features.
    unsafe {
        match ahead {
            Some(ahead) => product::<true>(x, panel, ahead, sums),
            None => product::<false>(x, panel, panel.as_ptr(), sums),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn put_rounded(sums: [[std::arch::x86_64::__m512; 2]; ROWS], out: &mut Sums) {
    use std::arch::x86_64::{_mm512_cvtneps_pbh, _mm512_cvtpbh_ps, _mm512_storeu_ps};

    for (out, sums) in out.iter_mut().zip(sums) {
        for (out, sum) in out.chunks_exact_mut(16).zip(sums) {
            let sum = _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(sum));
            // SAFETY: 16 numbers.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn bf16_product(
    _: [&[u16]; ROWS],
    _: &[[u32; WIDTH]],
    _: Option<*const [u32; WIDTH]>,
    _: &mut Sums,
) {
    unreachable!("panels of pairs are made only where the processor multiplies them")
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn pairs_product(
    _: [&[f32]; ROWS],
    _: &[[u32; WIDTH]],
    _: Option<*const [u32; WIDTH]>,
    _: &mut Sums,
) {
    unreachable!("panels of pairs are made only where the processor multiplies them")
}
