//! Products of few rows with a matrix that does not change: what decoding spends its time on.
//!
//! A general product rearranges the matrix each time, which costs more than the product itself when there are 16 rows.
//! Here it is rearranged once: panels of 32 columns, so that the inner loop reads memory in order.

use std::fmt;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::Precision;
use crate::layers::bf16_bits;
use crate::params::floats;

/// Columns of a panel.
const WIDTH: usize = 32;
/// Rows that a line of a panel is read for at once: their sums, two vectors a row, fill half of AVX-512's registers.
const ROWS: usize = 8;
/// Parts of a product for each thread.
const PARTS: usize = 4;

/// A matrix `[in, out]` in panels.
pub(crate) struct Packed {
    panels: Panels,
    precision: Precision,
    input: usize,
    output: usize,
}

/// A panel is a line for each row of the matrix, or for each two; a panel follows another.
enum Panels {
    F32(Vec<[f32; WIDTH]>),
    /// Two numbers side by side, as AVX-512's `vdpbf16ps` wants them: the even row in the lower half.
    Bf16(Vec<[u32; WIDTH]>),
}

impl Packed {
    /// Rounds and rearranges a matrix `[in, out]`.
    pub fn new(matrix: Tensor<2>, precision: Precision) -> Self {
        let [input, output] = matrix.dims();
        Self::from_values(matrix, [input, output], |i, o| i * output + o, precision)
    }

    /// The same of the matrix `[out, in]`.
    pub fn transposed(matrix: Tensor<2>, precision: Precision) -> Self {
        let [output, input] = matrix.dims();
        Self::from_values(matrix, [input, output], |i, o| o * input + i, precision)
    }

    fn from_values(
        matrix: Tensor<2>,
        [input, output]: [usize; 2],
        place: impl Fn(usize, usize) -> usize + Sync,
        precision: Precision,
    ) -> Self {
        let data = matrix.into_data_as::<f32>();
        let values: &[f32] = floats(&data);
        let at = |i: usize, o: usize| {
            if i < input && o < output {
                values[place(i, o)]
            } else {
                0.0
            }
        };
        let count = output.div_ceil(WIDTH);
        let panels = if precision == Precision::Bf16 && has_bf16() {
            let depth = input.div_ceil(2);
            let line = |n: usize| {
                let (i, o) = (2 * (n % depth), n / depth * WIDTH);
                std::array::from_fn(|j| pair(at(i, o + j), at(i + 1, o + j)))
            };
            Panels::Bf16((0..count * depth).into_par_iter().map(line).collect())
        } else {
            let line = |n: usize| {
                let (i, o) = (n % input, n / input * WIDTH);
                std::array::from_fn(|j| precision.round_value(at(i, o + j)))
            };
            Panels::F32((0..count * input).into_par_iter().map(line).collect())
        };
        Self {
            panels,
            precision,
            input,
            output,
        }
    }

    /// `[B, T, in] -> [B, T, out]`
    pub fn linear(&self, x: Tensor<3>) -> Tensor<3> {
        let (device, [b, t, _]) = (x.device(), x.dims());
        let y = self.product(floats(&x.into_data_as::<f32>()));
        Tensor::from_data(TensorData::new(y, [b, t, self.output]), &device)
    }

    /// `[N, in] -> [N, out]`, both row after row.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        match &self.panels {
            Panels::F32(panels) => {
                let round = |row: &[f32], i: usize| self.precision.round_value(row[i]);
                let x = Interleaved::<ROWS, _>::new(x, self.input, self.input, round);
                self.over_panels(&x, panels, |x, panel| {
                    pulp::Arch::new().dispatch(F32Product { x, panel })
                })
            }
            Panels::Bf16(panels) => {
                let pairs = |row: &[f32], i: usize| {
                    let second = row.get(2 * i + 1).copied().unwrap_or(0.0);
                    pair(row[2 * i], second)
                };
                let x = Interleaved::<ROWS, _>::new(x, self.input, self.input.div_ceil(2), pairs);
                self.over_panels(&x, panels, bf16_product)
            }
        }
    }

    /// Some columns of the result at a time, for all rows; `product` makes one panel of R rows.
    fn over_panels<const R: usize, T: Sync>(
        &self,
        x: &Interleaved<R, T>,
        panels: &[[T; WIDTH]],
        product: impl Fn(&[[T; R]], &[[T; WIDTH]]) -> [[f32; WIDTH]; R] + Sync,
    ) -> Vec<f32> {
        let mut out = vec![0.0; x.rows * self.output];
        let count = panels.len() / x.depth;
        let part = count.div_ceil(PARTS * rayon::current_num_threads()).max(1);
        // The columns of each part: a slice of every row.
        let mut stripes: Vec<Vec<&mut [f32]>> =
            (0..count.div_ceil(part)).map(|_| Vec::new()).collect();
        for row in out.chunks_exact_mut(self.output) {
            for (stripe, columns) in stripes.iter_mut().zip(row.chunks_mut(part * WIDTH)) {
                stripe.push(columns);
            }
        }
        let parts = panels.par_chunks(part * x.depth);
        stripes
            .into_par_iter()
            .zip(parts)
            .for_each(|(mut rows, panels)| {
                for (n, panel) in panels.chunks_exact(x.depth).enumerate() {
                    for (x, rows) in x.values.chunks_exact(x.depth).zip(rows.chunks_mut(R)) {
                        for (sums, row) in product(x, panel).iter().zip(rows) {
                            let to = &mut row[n * WIDTH..];
                            for (to, &sum) in to.iter_mut().zip(sums) {
                                *to = self.precision.round_value(sum);
                            }
                        }
                    }
                }
            });
        out
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "Packed([{}, {}], {:?})",
            self.input, self.output, self.precision
        )
    }
}

/// R rows at a time, number by number; the last ones are filled up with zeros.
struct Interleaved<const R: usize, T> {
    values: Vec<[T; R]>,
    depth: usize,
    rows: usize,
}

impl<const R: usize, T: Copy + Default + Send> Interleaved<R, T> {
    /// Rows of `input` numbers, of which `get` makes `depth`.
    fn new(x: &[f32], input: usize, depth: usize, get: impl Fn(&[f32], usize) -> T + Sync) -> Self {
        let rows = x.len() / input;
        let mut values = vec![[T::default(); R]; rows.div_ceil(R) * depth];
        let blocks = values.par_chunks_mut(depth).zip(x.par_chunks(R * input));
        blocks.for_each(|(values, x)| {
            for (r, row) in x.chunks_exact(input).enumerate() {
                for (i, values) in values.iter_mut().enumerate() {
                    values[r] = get(row, i);
                }
            }
        });
        Self {
            values,
            depth,
            rows,
        }
    }
}

/// Both numbers as bfloat16, the first in the lower half.
fn pair(first: f32, second: f32) -> u32 {
    bf16_bits(first) | bf16_bits(second) << 16
}

struct F32Product<'a> {
    x: &'a [[f32; ROWS]],
    panel: &'a [[f32; WIDTH]],
}

impl pulp::WithSimd for F32Product<'_> {
    type Output = [[f32; WIDTH]; ROWS];

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) -> Self::Output {
        let mut out = [[0.0; WIDTH]; ROWS];
        // Two vectors of a panel's columns at a time.
        for first in (0..WIDTH / S::F32_LANES).step_by(2) {
            if S::REGISTER_COUNT >= 32 {
                self.columns::<S, ROWS>(simd, first, 0, &mut out);
            } else {
                for row in (0..ROWS).step_by(ROWS / 2) {
                    self.columns::<S, { ROWS / 2 }>(simd, first, row, &mut out);
                }
            }
        }
        out
    }
}

impl F32Product<'_> {
    /// Two vectors of columns for the R rows from `row` on.
    #[inline(always)]
    fn columns<S: pulp::Simd, const R: usize>(
        &self,
        simd: S,
        first: usize,
        row: usize,
        out: &mut [[f32; WIDTH]; ROWS],
    ) {
        let mut sums = [[simd.splat_f32s(0.0); 2]; R];
        for (x, line) in self.x.iter().zip(self.panel) {
            let (x, line) = (&x[row..row + R], S::as_simd_f32s(line).0);
            for r in 0..R {
                let x = simd.splat_f32s(x[r]);
                for v in 0..2 {
                    sums[r][v] = simd.mul_add_f32s(x, line[first + v], sums[r][v]);
                }
            }
        }
        for (out, sums) in out[row..row + R].iter_mut().zip(sums) {
            S::as_mut_simd_f32s(out).0[first..first + 2].copy_from_slice(&sums);
        }
    }
}

/// Whether the processor multiplies bfloat16.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
fn bf16_product(x: &[[u32; ROWS]], panel: &[[u32; WIDTH]]) -> [[f32; WIDTH]; ROWS] {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn product(x: &[[u32; ROWS]], panel: &[[u32; WIDTH]]) -> [[f32; WIDTH]; ROWS] {
        // SAFETY: both are 512 bits without a meaning of their own.
        let pairs = |x: __m512i| unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        for (x, line) in x.iter().zip(panel) {
            // SAFETY: a line is 32 numbers of 32 bits, two vectors.
            let line = unsafe {
                [
                    pairs(_mm512_loadu_si512(line.as_ptr().cast())),
                    pairs(_mm512_loadu_si512(line.as_ptr().add(16).cast())),
                ]
            };
            for r in 0..ROWS {
                let x = pairs(_mm512_set1_epi32(x[r].cast_signed()));
                for v in 0..2 {
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], x, line[v]);
                }
            }
        }
        let mut out = [[0.0; WIDTH]; ROWS];
        for (out, sums) in out.iter_mut().zip(sums) {
            for (out, sum) in out.chunks_exact_mut(16).zip(sums) {
                // SAFETY: 16 numbers.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) };
            }
        }
        out
    }
    // SAFETY: panels of pairs are made only where the processor has both.
    unsafe { product(x, panel) }
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_product(_: &[[u32; ROWS]], _: &[[u32; WIDTH]]) -> [[f32; WIDTH]; ROWS] {
    unreachable!("panels of pairs are made only where the processor multiplies them")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_product_is_that_of_the_matrices() {
        let device = Device::flex();
        let noise = |n: usize, seed: u64| -> Vec<f32> {
            let value = |i| crate::params::unit(crate::params::mix(seed ^ (i as u64) << 8));
            (0..n).map(|i| (value(i) * 2.0 - 1.0) as f32).collect()
        };
        for precision in [Precision::F32, Precision::Bf16] {
            for (rows, input, output) in [
                (1, 1, 1),
                (3, 7, 5),
                (4, 64, 32),
                (9, 33, 70),
                (17, 20, 129),
            ] {
                let (x, w) = (noise(rows * input, 1), noise(input * output, 2));
                let matrix =
                    Tensor::<2>::from_data(TensorData::new(w.clone(), [input, output]), &device);
                let y = Packed::new(matrix.clone(), precision).product(&x);
                let other = Packed::transposed(matrix.transpose(), precision).product(&x);
                assert_eq!(y, other);
                assert_eq!(y.len(), rows * output);
                for (n, y) in y.into_iter().enumerate() {
                    let (row, column) = (n / output, n % output);
                    let term = |i: usize| {
                        let factors = [x[row * input + i], w[i * output + column]];
                        let [a, b] = factors.map(|v| f64::from(precision.round_value(v)));
                        a * b
                    };
                    let exact: f64 = (0..input).map(term).sum();
                    // Half a step of bfloat16 where the product is rounded.
                    let near = if precision == Precision::F32 {
                        1e-5
                    } else {
                        exact.abs() / 256.0 + 1e-5
                    };
                    assert!(
                        (f64::from(y) - exact).abs() <= near,
                        "{precision:?} {rows} x {input} x {output}, {n}: {y} {exact}"
                    );
                }
            }
        }
    }
}
