//! Products of few rows with a matrix that does not change: they take most of the time of decoding.
//!
//! A general product packs the matrix each time, which costs more than the product itself when there are 16 rows. Here the
//! matrix is packed once: panels of 32 columns, so that the inner loop reads memory in order.

mod product;

use abkd_host::{dispatch, prefetch};
use burn::tensor::Tensor;
use rayon::prelude::*;

use product::{F32Product, bf16_product, pairs_product};

use crate::Precision;
use crate::bf16::{self, Dots};
use crate::layers::bf16_bits;
use crate::params::floats;

/// Columns of a panel.
const WIDTH: usize = 32;
/// Rows for which a line of a panel is read once: their sums, two vectors per row, fill half of AVX-512's registers.
const ROWS: usize = 8;
/// Groups of rows that stay in the cache while the panels are read; each prefetches its share of the next panel.
const GROUPS: usize = 8;
/// Rows of these groups.
const BLOCK: usize = GROUPS * ROWS;
/// Parts of a product per thread.
const PARTS: usize = 16;

/// Sums of some rows in the columns of a panel.
type Sums = [[f32; WIDTH]; ROWS];

/// Rows of numbers `[N, width]`, also as factors of products.
pub(crate) struct Factors {
    width: usize,
    values: Vec<f32>,
    rounded: Rounded,
}

/// The rounded factors, where they differ from the values.
enum Rounded {
    Same,
    /// Padded to an even number per row.
    F32(Vec<f32>),
    /// Bits of bfloat16, padded in the same way.
    Bf16(Vec<u16>),
}

impl Factors {
    /// No rows yet.
    pub fn new(width: usize, precision: Precision) -> Self {
        let rounded = match precision {
            Precision::F32 => Rounded::Same,
            Precision::Bf16 if bf16::dots() == Some(Dots::Fast) => Rounded::Bf16(Vec::new()),
            Precision::Bf16 => Rounded::F32(Vec::new()),
        };
        Self {
            width,
            values: Vec::new(),
            rounded,
        }
    }

    /// `rows` new rows, each written by `write`, in parallel.
    pub fn fill(&mut self, rows: usize, write: impl Fn(usize, &mut [f32]) + Sync) {
        let width = self.width;
        let stride = width.next_multiple_of(2);
        self.values.resize(rows * width, 0.0);
        let values = self.values.par_chunks_mut(width).enumerate();
        match &mut self.rounded {
            Rounded::Same => values.for_each(|(row, values)| write(row, values)),
            Rounded::F32(rounded) => {
                rounded.resize(rows * stride, 0.0);
                let rows = values.zip(rounded.par_chunks_mut(stride));
                rows.for_each(|((row, values), rounded)| {
                    write(row, values);
                    rounded[..width].copy_from_slice(values);
                    round(rounded);
                });
            }
            Rounded::Bf16(halves) => {
                halves.resize(rows * stride, 0);
                let rows = values.zip(halves.par_chunks_mut(stride));
                rows.for_each(|((row, values), halves)| {
                    write(row, values);
                    narrow(halves, values);
                });
            }
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.values.len() / self.width
    }

    /// The values themselves, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

dispatch!(round => round_values(x: &mut [f32]));
dispatch!(narrow => narrow_values(to: &mut [u16], from: &[f32]));

#[inline(always)]
fn round_values(x: &mut [f32]) {
    for x in x {
        *x = Precision::Bf16.round_value(*x);
    }
}

#[inline(always)]
fn narrow_values(to: &mut [u16], from: &[f32]) {
    for (to, &from) in to.iter_mut().zip(from) {
        *to = bf16_bits(from) as u16;
    }
}

/// How a product is stored.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Put {
    /// It overwrites the output.
    Over,
    /// It is added to the output.
    Onto,
}

/// A matrix `[in, out]` in panels.
pub(crate) struct Packed {
    panels: Panels,
    /// Added to the product: a number for each column of the panels.
    bias: Vec<f32>,
    precision: Precision,
    input: usize,
    output: usize,
}

/// Panels one after another. A panel has a line for each row of the matrix, or for each two rows.
enum Panels {
    F32(Vec<[f32; WIDTH]>),
    /// Two numbers side by side, as `vdpbf16ps` expects them: the even row in the lower half.
    Bf16(Vec<[u32; WIDTH]>),
}

impl Packed {
    /// Rounds and packs a matrix `[in, out]`.
    pub fn new(matrix: Tensor<2>, precision: Precision) -> Self {
        let dims = matrix.dims();
        Self::from_values(matrix, dims, false, precision)
    }

    /// The same for a matrix `[out, in]`.
    pub fn transposed(matrix: Tensor<2>, precision: Precision) -> Self {
        let [output, input] = matrix.dims();
        Self::from_values(matrix, [input, output], true, precision)
    }

    fn from_values(
        matrix: Tensor<2>,
        [input, output]: [usize; 2],
        transposed: bool,
        precision: Precision,
    ) -> Self {
        let data = matrix.into_data_as::<f32>();
        let values: &[f32] = floats(&data);
        let dims = [input, output];
        let panels = if precision == Precision::Bf16 && bf16::dots().is_some() {
            let set = |cell: &mut u32, i: usize, x| *cell |= bf16_bits(x) << (16 * (i % 2));
            Panels::Bf16(panels(values, dims, transposed, 2, set))
        } else {
            let set = |cell: &mut f32, _, x| *cell = precision.round_value(x);
            Panels::F32(panels(values, dims, transposed, 1, set))
        };
        let count = output.div_ceil(WIDTH);
        Self {
            panels,
            bias: vec![0.0; count * WIDTH],
            precision,
            input,
            output,
        }
    }

    /// The same with `bias`, which is added to the rounded product.
    pub fn with_bias(mut self, bias: &[f32]) -> Self {
        self.bias[..self.output].copy_from_slice(bias);
        self
    }

    /// Columns of the product.
    pub fn output(&self) -> usize {
        self.output
    }

    /// `[N, in] -> [N, out]`, rounded as the precision's products are.
    ///
    /// # Panics
    ///
    /// Where the factors have another width or precision.
    pub fn product(&self, x: &Factors, put: Put, out: &mut [f32]) {
        assert_eq!(x.width, self.input, "rows of another width");
        match (&self.panels, &x.rounded) {
            (Panels::F32(panels), Rounded::F32(values)) => {
                let stride = self.input.next_multiple_of(2);
                self.f32_product(values, stride, panels, put, out);
            }
            (Panels::F32(panels), Rounded::Same) => {
                self.f32_product(&x.values, self.input, panels, put, out);
            }
            (Panels::Bf16(panels), Rounded::F32(values)) => {
                let depth = self.input.div_ceil(2);
                self.over_panels(values, 2 * depth, panels, depth, put, out, pairs_product);
            }
            (Panels::Bf16(panels), Rounded::Bf16(halves)) => {
                let depth = self.input.div_ceil(2);
                self.over_panels(halves, 2 * depth, panels, depth, put, out, bf16_product);
            }
            _ => panic!("factors of another precision"),
        }
    }

    /// [`product`](Self::product) of `rows` rows that are given in f32.
    pub fn product_of(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * self.output];
        let Panels::F32(panels) = &self.panels else {
            panic!("factors of another precision")
        };
        self.f32_product(x, self.input, panels, Put::Over, &mut out);
        out
    }

    fn f32_product(
        &self,
        x: &[f32],
        stride: usize,
        panels: &[[f32; WIDTH]],
        put: Put,
        out: &mut [f32],
    ) {
        let precision = self.precision;
        let product = |x: [&[f32]; ROWS], panel: &[[f32; WIDTH]], _: Option<_>, sums: &mut Sums| {
            pulp::Arch::new().dispatch(F32Product { x, panel, sums });
            if precision == Precision::Bf16 {
                round(sums.as_flattened_mut());
            }
        };
        self.over_panels(x, stride, panels, self.input, put, out, product);
    }

    /// Computes some columns of the result at a time, for all rows; `product` computes one panel for some rows. A row has
    /// `stride` numbers, a panel `depth` lines.
    #[allow(clippy::too_many_arguments)]
    fn over_panels<X: Sync, T: Sync>(
        &self,
        x: &[X],
        stride: usize,
        panels: &[[T; WIDTH]],
        depth: usize,
        put: Put,
        out: &mut [f32],
        product: impl Fn([&[X]; ROWS], &[[T; WIDTH]], Option<*const [T; WIDTH]>, &mut Sums) + Sync,
    ) {
        let rows = x.len() / stride;
        assert_eq!(out.len(), rows * self.output, "a row for each row");
        let count = panels.len() / depth;
        let part = count.div_ceil(PARTS * rayon::current_num_threads()).max(1);
        // The columns of each part: a slice of every row.
        let mut stripes: Vec<Vec<&mut [f32]>> = (0..count.div_ceil(part))
            .map(|_| Vec::with_capacity(rows))
            .collect();
        for row in out.chunks_exact_mut(self.output) {
            for (stripe, columns) in stripes.iter_mut().zip(row.chunks_mut(part * WIDTH)) {
                stripe.push(columns);
            }
        }
        let row = |r: usize| &x[r.min(rows - 1) * stride..][..stride];
        let parts = stripes
            .into_par_iter()
            .zip(panels.par_chunks(part * depth))
            .zip(self.bias.par_chunks(part * WIDTH));
        parts.for_each(|((mut stripe, panels), bias)| {
            let mut sums = [[0.0; WIDTH]; ROWS];
            for (b, block) in stripe.chunks_mut(BLOCK).enumerate() {
                let groups = block.len().div_ceil(ROWS);
                for (n, panel) in panels.chunks_exact(depth).enumerate() {
                    for (g, group) in block.chunks_mut(ROWS).enumerate() {
                        let first = b * BLOCK + g * ROWS;
                        // With few groups the prefetch would not cover the next panel.
                        let ahead = panel.as_ptr().wrapping_add(depth + g * depth / GROUPS);
                        let ahead = (groups > GROUPS / 2).then_some(ahead);
                        for to in group.iter() {
                            prefetch(to.as_ptr().wrapping_add(n * WIDTH));
                            prefetch(to.as_ptr().wrapping_add(n * WIDTH + WIDTH / 2));
                        }
                        // Beyond the last row, the last row is recomputed.
                        let rows = std::array::from_fn(|r| row(first + r));
                        product(rows, panel, ahead, &mut sums);
                        let bias = &bias[n * WIDTH..(n + 1) * WIDTH];
                        put_rows(put, group, n * WIDTH, &sums, bias);
                    }
                }
            }
        });
    }
}

/// Packs lines of `per` rows of the matrix into panels; `set` puts a row's number into a cell. Cells outside the matrix are
/// 0.
fn panels<T: Copy + Default + Send>(
    values: &[f32],
    [input, output]: [usize; 2],
    transposed: bool,
    per: usize,
    set: impl Fn(&mut T, usize, f32) + Sync,
) -> Vec<[T; WIDTH]> {
    let depth = input.div_ceil(per);
    let mut lines = vec![[T::default(); WIDTH]; output.div_ceil(WIDTH) * depth];
    let panels = lines.par_chunks_mut(depth).enumerate();
    // In the order of the matrix's memory.
    panels.for_each(|(n, panel)| {
        let columns = n * WIDTH..output.min((n + 1) * WIDTH);
        if transposed {
            for (j, column) in columns.enumerate() {
                let column = &values[column * input..(column + 1) * input];
                for (i, &x) in column.iter().enumerate() {
                    set(&mut panel[i / per][j], i, x);
                }
            }
        } else {
            for (i, row) in values.chunks_exact(output).enumerate() {
                for (cell, &x) in panel[i / per].iter_mut().zip(&row[columns.clone()]) {
                    set(cell, i, x);
                }
            }
        }
    });
    lines
}

dispatch!(put_rows => put_sums(
    put: Put, rows: &mut [&mut [f32]], column: usize, sums: &Sums, bias: &[f32],
));

#[inline(always)]
fn put_sums(put: Put, rows: &mut [&mut [f32]], column: usize, sums: &Sums, bias: &[f32]) {
    for (to, sums) in rows.iter_mut().zip(sums) {
        let to = to[column..].iter_mut().zip(sums).zip(bias);
        match put {
            Put::Over => to.for_each(|((to, sum), bias)| *to = sum + bias),
            Put::Onto => to.for_each(|((to, sum), bias)| *to += sum + bias),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn a_product_is_that_of_the_matrices() {
        crate::bf16::each_way(check_products);
    }

    /// Slow and fast, bit for bit.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn pairs_are_summed_as_the_processor_does() {
        if bf16::dots().is_none() {
            return;
        }
        let number = |i: usize| crate::params::unit(crate::params::mix(i as u64)) as f32 - 0.5;
        let pair = |i: usize| bf16_bits(number(i)) | bf16_bits(number(i + 7_777)) << 16;
        let depth = 301;
        let panel: Vec<[u32; WIDTH]> = (0..depth)
            .map(|line| std::array::from_fn(|column| pair(line * WIDTH + column)))
            .collect();
        let halves: Vec<u16> = (0..ROWS * 2 * depth)
            .map(|i| bf16_bits(number(i + 99_999)) as u16)
            .collect();
        let wide: Vec<f32> = halves
            .iter()
            .map(|&half| f32::from_bits(u32::from(half) << 16))
            .collect();
        let mut sums = [[[0.0; WIDTH]; ROWS]; 2];
        let [fast, slow] = &mut sums;
        let row = |r: usize| 2 * depth * r..2 * depth * (r + 1);
        bf16_product(std::array::from_fn(|r| &halves[row(r)]), &panel, None, fast);
        pairs_product(std::array::from_fn(|r| &wide[row(r)]), &panel, None, slow);
        assert_eq!(fast, slow);
        assert!(fast.as_flattened().iter().all(|&sum| sum != 0.0));
    }

    fn check_products() {
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
                (150, 16, 40),
            ] {
                let (x, w) = (noise(rows * input, 1), noise(input * output, 2));
                let matrix =
                    Tensor::<2>::from_data(TensorData::new(w.clone(), [input, output]), &device);
                let mut factors = Factors::new(input, precision);
                factors.fill(rows, |r, to| to.copy_from_slice(&x[r * input..][..input]));
                let mut y = vec![f32::NAN; rows * output];
                Packed::new(matrix.clone(), precision).product(&factors, Put::Over, &mut y);
                let mut other = vec![1.0; rows * output];
                let transposed = Packed::transposed(matrix.transpose(), precision);
                transposed.product(&factors, Put::Onto, &mut other);
                assert!(y.iter().zip(&other).all(|(y, other)| y + 1.0 == *other));
                assert_eq!(y.len(), rows * output);
                for (n, y) in y.into_iter().enumerate() {
                    let (row, column) = (n / output, n % output);
                    assert_eq!(y, precision.round_value(y));
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
