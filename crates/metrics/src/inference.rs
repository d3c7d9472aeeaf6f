//! Inference from a table of scores about its rows, beyond the trainings, sampling seeds and examples at hand.
//!
//! A score of a row, `y[t, s, e]`, depends on the training seed t, the sampling seed s and the example e. All three are
//! random draws, and they are crossed: each training answers each example with each sampling seed. With `x` a contrast of
//! rows (one row, or one minus another) the variance of its mean is `var(t) / T + var(s) / S + var(e) / E` plus such terms
//! for the interactions, which the mean squares of the analysis of variance estimate without bias; degrees of freedom are
//! Satterthwaite's (1946).
//!
//! Two or three trainings say little about their own variance. **All rows of a table are assumed to have the same training
//! variance**, which is estimated from all of them: 8 rows of 3 trainings have 14 degrees of freedom where a pair of rows has
//! 2. With equal variances nominal 95% intervals contain the true value 93 to 97% of the time, whatever the number of
//! trainings. For a row whose training standard deviation is 1.5 times that of the others, only 84 to 95% of
//! the intervals do.
//!
//! Two questions are kept apart: whether *these trained students* differ, where only examples and sampling vary
//! ([`Table::students`]), and whether *the losses* differ, where the trainings vary, too ([`Table::difference`]).

use abkd_host::fault;
use abkd_host::rng::Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

use crate::stats::{mean, quantiles, spearman};

/// Scores of all rows of a table on one data set, all rows with the same training seeds, sampling seeds and examples.
#[derive(Clone, Debug)]
pub struct Table {
    shape: Shape,
    values: Vec<f64>,
}

/// Sizes of a [`Table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the table.
    pub rows: usize,
    /// Training seeds.
    pub trainings: usize,
    /// Sampling seeds.
    pub samplings: usize,
    /// Examples of the data set.
    pub examples: usize,
}

/// A mean, and how uncertain it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Variance of the mean.
    pub variance: f64,
    /// Degrees of freedom of that variance.
    pub degrees: f64,
}

impl Estimate {
    /// Standard error of the mean.
    pub fn error(&self) -> f64 {
        self.variance.sqrt()
    }

    /// Half the width of the two-sided interval of this level, e.g. 0.95.
    pub fn half_width(&self, level: f64) -> f64 {
        quantile(self.degrees, 0.5 + 0.5 * level) * self.error()
    }

    /// The two-sided interval of this level.
    pub fn interval(&self, level: f64) -> [f64; 2] {
        let half = self.half_width(level);
        [self.mean - half, self.mean + half]
    }

    /// Two-sided p value of the hypothesis that the mean is 0.
    pub fn p(&self) -> f64 {
        if self.variance <= 0.0 {
            return if self.mean == 0.0 { 1.0 } else { 0.0 };
        }
        let t = (self.mean / self.error()).abs();
        2.0 * student(self.degrees).sf(t)
    }

    /// The smallest true mean that a two-sided test at 5% finds with this power: minimum detectable effect.
    pub fn detectable(&self, power: f64) -> f64 {
        (quantile(self.degrees, 0.975) + quantile(self.degrees, power)) * self.error()
    }
}

fn student(degrees: f64) -> StudentsT {
    let degrees = fault!("normal intervals", degrees.max(1.0), 1e3);
    StudentsT::new(0.0, 1.0, degrees).expect("one degree of freedom at least")
}

fn quantile(degrees: f64, p: f64) -> f64 {
    student(degrees).inverse_cdf(p)
}

/// A mean square and its degrees of freedom.
#[derive(Clone, Copy, Debug, Default)]
struct Square {
    value: f64,
    degrees: f64,
}

/// Mean squares of a contrast. With one sampling seed those of the sampling seeds are 0.
#[derive(Clone, Copy, Debug)]
struct Squares {
    training: Square,
    sampling: Square,
    example: Square,
    training_sampling: Square,
    training_example: Square,
    sampling_example: Square,
    all: Square,
}

impl Table {
    /// From `values[row][training][sampling][example]`, in that order; `None` where the number of values does not fit the
    /// shape, a value is not finite, or there is nothing to estimate from: no row, training or sampling seed, or fewer than
    /// two examples.
    pub fn new(shape: Shape, values: Vec<f64>) -> Option<Self> {
        let Shape {
            rows,
            trainings,
            samplings,
            examples,
        } = shape;
        let whole = rows * trainings * samplings * examples == values.len();
        let enough = rows > 0 && trainings > 0 && samplings > 0 && examples > 1;
        let finite = values.iter().all(|x| x.is_finite());
        (whole && enough && finite).then_some(Self { shape, values })
    }

    /// The table's sizes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Mean of all values of a row.
    ///
    /// # Panics
    ///
    /// When the table has no such row.
    pub fn mean(&self, row: usize) -> f64 {
        mean(&self.contrast(row, None)).expect("has values")
    }

    /// A row's mean, with trainings, sampling seeds and examples treated as random; `None` with one training, whose variance is
    /// unknown.
    ///
    /// # Panics
    ///
    /// When the table has no such row.
    pub fn row(&self, row: usize) -> Option<Estimate> {
        self.estimate(&self.contrast(row, None), self.training_within_rows()?)
    }

    /// A row minus another, with trainings, sampling seeds and examples treated as random: whether *the losses* differ.
    /// `None` with one training.
    ///
    /// # Panics
    ///
    /// When the table has no such rows.
    pub fn difference(&self, row: usize, other: usize) -> Option<Estimate> {
        self.estimate(
            &self.contrast(row, Some(other)),
            self.training_of_differences()?,
        )
    }

    /// A row minus another for the students at hand: examples and sampling seeds vary, trainings do not.
    ///
    /// # Panics
    ///
    /// When the table has no such rows.
    pub fn students(&self, row: usize, other: usize) -> Estimate {
        self.over_examples(row, Some(other))
    }

    /// A row's mean for the students at hand: examples and sampling seeds vary, trainings do not.
    ///
    /// # Panics
    ///
    /// When the table has no such row.
    pub fn student(&self, row: usize) -> Estimate {
        self.over_examples(row, None)
    }

    fn over_examples(&self, row: usize, other: Option<usize>) -> Estimate {
        let x = self.by_example(row, other);
        let n = x.len() as f64;
        let mean = mean(&x).expect("has values");
        let square: f64 = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Estimate {
            mean,
            variance: square / n,
            degrees: n - 1.0,
        }
    }

    /// Two-sided p value of the hypothesis that the students at hand are equal, by approximate randomisation over examples
    /// (Noreen 1989): the two rows' answers to an example are swapped with probability 1/2.
    ///
    /// # Panics
    ///
    /// When the table has no such rows.
    pub fn randomisation(&self, row: usize, other: usize, draws: usize, seed: u64) -> f64 {
        let x = self.by_example(row, Some(other));
        let observed = x.iter().sum::<f64>().abs();
        let mut rng = Rng::new(&[seed]);
        // Sums in another order differ by rounding.
        let slack = 1e-12 * x.iter().map(|x| x.abs()).sum::<f64>();
        let extreme = (0..draws).filter(|_| {
            let mut sum = 0.0;
            for chunk in x.chunks(64) {
                let bits = rng.bits();
                for (i, x) in chunk.iter().enumerate() {
                    sum += if bits >> i & 1 == 0 { *x } else { -x };
                }
            }
            sum.abs() >= observed - slack
        });
        (1 + extreme.count()) as f64 / (1 + draws) as f64
    }

    /// The difference over the standard deviation of a single answer's difference: effect size (Cohen's d of paired
    /// values); `None` where nothing varies.
    ///
    /// # Panics
    ///
    /// When the table has no such rows.
    pub fn effect(&self, row: usize, other: usize) -> Option<f64> {
        let x = self.contrast(row, Some(other));
        let deviation = crate::stats::std(&x).filter(|s| *s > 0.0)?;
        Some(mean(&x)? / deviation)
    }

    /// The number of trainings per row, at most `most`, with which the difference at hand would be found with this power, all
    /// else equal. `None` where `most` is too few, since examples vary, too.
    ///
    /// # Panics
    ///
    /// When the table has no such rows.
    pub fn trainings_to_decide(
        &self,
        row: usize,
        other: usize,
        power: f64,
        most: usize,
    ) -> Option<usize> {
        let now = self.shape.trainings as f64;
        let training = self.training_of_differences()?;
        let x = self.contrast(row, Some(other));
        let squares = self.squares(&x, training);
        let all = self.estimate_of(&x, &squares)?;
        // The trainings' part of the variance of the mean; it falls with their number.
        let [_, t, s, e] = self.counts();
        let by_training = (training.value - squares.training_example.value).max(0.0) / (t * s * e);
        let rest = (all.variance - by_training).max(0.0);
        let found = |n: usize| {
            let grown = n as f64 / now;
            let estimate = Estimate {
                mean: all.mean,
                variance: by_training / grown + rest,
                degrees: all.degrees * (n as f64 - 1.0) / (now - 1.0),
            };
            estimate.detectable(power) <= all.mean.abs()
        };
        // The smallest difference that is found falls with their number.
        let (mut too_few, mut enough) = (1, most);
        if most < 2 || !found(most) {
            return None;
        }
        while enough - too_few > 1 {
            let middle = too_few.midpoint(enough);
            if found(middle) {
                enough = middle;
            } else {
                too_few = middle;
            }
        }
        Some(enough)
    }

    /// Rows, trainings, sampling seeds, examples.
    fn counts(&self) -> [f64; 4] {
        let s = self.shape;
        [s.rows, s.trainings, s.samplings, s.examples].map(|n| n as f64)
    }

    /// Values of a row, minus another's: `[T, S, E]`.
    fn contrast(&self, row: usize, other: Option<usize>) -> Vec<f64> {
        let size = self.values.len() / self.shape.rows;
        let of = |row: usize| &self.values[row * size..(row + 1) * size];
        match other {
            None => of(row).to_vec(),
            Some(other) => of(row).iter().zip(of(other)).map(|(a, b)| a - b).collect(),
        }
    }

    /// The same, averaged over trainings and sampling seeds: `[E]`.
    fn by_example(&self, row: usize, other: Option<usize>) -> Vec<f64> {
        let mut sums = vec![0.0; self.shape.examples];
        let x = self.contrast(row, other);
        for chunk in x.chunks(self.shape.examples) {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
        }
        let n = (x.len() / self.shape.examples) as f64;
        sums.iter().map(|sum| sum / n).collect()
    }

    /// Means of each training, row by row: `[R][T]`.
    fn by_training(&self) -> Vec<Vec<f64>> {
        let size = self.shape.samplings * self.shape.examples;
        let means: Vec<f64> = self
            .values
            .chunks(size)
            .map(|chunk| chunk.iter().sum::<f64>() / size as f64)
            .collect();
        means
            .chunks(self.shape.trainings)
            .map(<[f64]>::to_vec)
            .collect()
    }

    /// Mean square of the trainings of a row, pooled over rows.
    fn training_within_rows(&self) -> Option<Square> {
        let [rows, trainings, samplings, examples] = self.counts();
        let degrees = rows * (trainings - 1.0);
        let sum: f64 = self
            .by_training()
            .iter()
            .map(|z| {
                let m = mean(z).expect("has values");
                z.iter().map(|x| (x - m).powi(2)).sum::<f64>()
            })
            .sum();
        (degrees > 0.0).then(|| Square {
            value: samplings * examples * sum / degrees,
            degrees,
        })
    }

    /// Mean square of the trainings of a difference of two rows, pooled over all pairs: twice that of the interaction of
    /// rows and trainings, since rows share a training seed's data order.
    fn training_of_differences(&self) -> Option<Square> {
        let [_, _, samplings, examples] = self.counts();
        let degrees = self.degrees_of_trainings();
        let sum: f64 = self.residuals().iter().flatten().map(|x| x.powi(2)).sum();
        (degrees > 0.0).then(|| Square {
            value: 2.0 * samplings * examples * sum / degrees,
            degrees,
        })
    }

    /// Degrees of freedom of [`Table::residuals`].
    fn degrees_of_trainings(&self) -> f64 {
        let [rows, trainings, ..] = self.counts();
        (rows - 1.0) * (trainings - 1.0)
    }

    /// Mean of each training, minus those of its row and of its training seed, plus that of all: `[R][T]`.
    fn residuals(&self) -> Vec<Vec<f64>> {
        let mut z = self.by_training();
        let of_row: Vec<f64> = z.iter().map(|z| mean(z).expect("has values")).collect();
        let all = mean(&of_row).expect("has values");
        for t in 0..self.shape.trainings {
            let of_training = z.iter().map(|z| z[t]).sum::<f64>() / z.len() as f64;
            for (z, of_row) in z.iter_mut().zip(&of_row) {
                z[t] -= of_row + of_training - all;
            }
        }
        z
    }

    /// Mean square of training x example of a row, averaged over rows.
    fn training_by_example(&self) -> f64 {
        let none = Square::default();
        let of_row = |row| {
            let squares = self.squares(&self.contrast(row, None), none);
            squares.training_example.value
        };
        (0..self.shape.rows).map(of_row).sum::<f64>() / self.shape.rows as f64
    }

    /// Mean squares of a contrast `[T, S, E]`.
    fn squares(&self, x: &[f64], training: Square) -> Squares {
        let [_, t, s, e] = self.counts();
        let Shape {
            trainings: nt,
            samplings: ns,
            examples: ne,
            ..
        } = self.shape;
        let all = x.iter().sum::<f64>() / x.len() as f64;
        // Means over the factors that are not kept, in the order training, sampling seed, example.
        let means = |keep: [bool; 3]| {
            let size = |kept: bool, n: usize| if kept { n } else { 1 };
            let [a, b, c] = [size(keep[0], nt), size(keep[1], ns), size(keep[2], ne)];
            let mut sums = vec![0.0; a * b * c];
            for (i, x) in x.iter().enumerate() {
                let [it, is, ie] = [i / (ns * ne), i / ne % ns, i % ne];
                sums[(it.min(a - 1) * b + is.min(b - 1)) * c + ie.min(c - 1)] += x;
            }
            let n = (x.len() / (a * b * c)) as f64;
            sums.iter_mut().for_each(|sum| *sum /= n);
            sums
        };
        let of_t = means([true, false, false]);
        let of_s = means([false, true, false]);
        let of_e = means([false, false, true]);
        let (ts, te, se) = (
            means([true, true, false]),
            means([true, false, true]),
            means([false, true, true]),
        );
        let square = |sum: f64, weight: f64, degrees: f64| Square {
            value: if degrees > 0.0 {
                weight * sum / degrees
            } else {
                0.0
            },
            degrees,
        };
        let main = |m: &[f64]| m.iter().map(|m| (m - all).powi(2)).sum::<f64>();
        let two = |m: &[f64], a: &[f64], b: &[f64]| -> f64 {
            m.iter()
                .enumerate()
                .map(|(i, m)| (m - a[i / b.len()] - b[i % b.len()] + all).powi(2))
                .sum()
        };
        let mut rest = 0.0;
        for (i, x) in x.iter().enumerate() {
            let [it, is, ie] = [i / (ns * ne), i / ne % ns, i % ne];
            let fitted = ts[it * ns + is] + te[it * ne + ie] + se[is * ne + ie]
                - of_t[it]
                - of_s[is]
                - of_e[ie]
                + all;
            rest += (x - fitted).powi(2);
        }
        Squares {
            training,
            sampling: square(main(&of_s), t * e, s - 1.0),
            example: square(main(&of_e), t * s, e - 1.0),
            training_sampling: square(two(&ts, &of_t, &of_s), e, (t - 1.0) * (s - 1.0)),
            training_example: square(two(&te, &of_t, &of_e), s, (t - 1.0) * (e - 1.0)),
            sampling_example: square(two(&se, &of_s, &of_e), t, (s - 1.0) * (e - 1.0)),
            all: square(rest, 1.0, (t - 1.0) * (s - 1.0) * (e - 1.0)),
        }
    }

    fn estimate(&self, x: &[f64], training: Square) -> Option<Estimate> {
        self.estimate_of(x, &self.squares(x, training))
    }

    /// Mean squares and their signs, that of the trainings first. Their signed sum is the variance of a contrast's mean times
    /// the number of its values.
    fn terms(q: &Squares) -> Vec<(Square, f64)> {
        // The sampling seeds' own variance is nearly 0, because a seed's draws differ from example to example. Where its
        // estimate is negative it counts as 0.
        let sampling =
            q.sampling.value - q.training_sampling.value - q.sampling_example.value + q.all.value;
        let mut terms = vec![
            (q.training, 1.0),
            (q.example, 1.0),
            (q.training_example, -1.0),
        ];
        if sampling > 0.0 {
            terms.extend([
                (q.sampling, 1.0),
                (q.training_sampling, -1.0),
                (q.sampling_example, -1.0),
                (q.all, 1.0),
            ]);
        }
        terms
    }

    fn estimate_of(&self, x: &[f64], q: &Squares) -> Option<Estimate> {
        let [_, t, s, e] = self.counts();
        let terms = Self::terms(q);
        let sum: f64 = terms.iter().map(|(q, sign)| sign * q.value).sum();
        let known: f64 = terms
            .iter()
            .filter(|(q, _)| q.degrees > 0.0)
            .map(|(q, _)| q.value.powi(2) / q.degrees)
            .sum();
        // At least the larger of the trainings' and the examples' parts.
        let variance = sum.max(q.training.value).max(q.example.value);
        Some(Estimate {
            mean: mean(x)?,
            variance: variance / (t * s * e),
            degrees: if known > 0.0 {
                sum.max(0.0).powi(2) / known
            } else {
                q.training.degrees
            },
        })
    }
}

/// The mean over data sets of a row minus another, with trainings, sampling seeds and examples treated as random. A training
/// is one student on all sets; each set has its own examples. `None` with one training, or where the tables do not have the
/// same number of rows and trainings.
///
/// # Panics
///
/// When a table has no such rows.
pub fn difference_across(tables: &[Table], row: usize, other: usize) -> Option<Estimate> {
    let shape = alike(tables)?;
    let sets = tables.len() as f64;
    let degrees = tables[0].degrees_of_trainings();
    if degrees <= 0.0 {
        return None;
    }
    let residuals: Vec<Vec<Vec<f64>>> = tables.iter().map(Table::residuals).collect();
    let mut squares = 0.0;
    for r in 0..shape.rows {
        for t in 0..shape.trainings {
            squares += (residuals.iter().map(|set| set[r][t]).sum::<f64>() / sets).powi(2);
        }
    }
    let training = 2.0 * squares / degrees / shape.trainings as f64;
    let (mut mean, mut sum, mut examples) = (0.0, training, 0.0);
    let mut known = training.powi(2) / degrees;
    for table in tables {
        let x = table.contrast(row, Some(other));
        mean += crate::stats::mean(&x)? / sets;
        let squares = table.squares(&x, Square::default());
        examples += squares.example.value / x.len() as f64 / sets.powi(2);
        for (square, sign) in Table::terms(&squares).into_iter().skip(1) {
            let part = square.value / x.len() as f64 / sets.powi(2);
            sum += sign * part;
            if square.degrees > 0.0 {
                known += part.powi(2) / square.degrees;
            }
        }
    }
    Some(Estimate {
        mean,
        // As for one set: at least the larger of the trainings' and the examples' parts.
        variance: sum.max(training).max(examples),
        degrees: if known > 0.0 {
            sum.max(0.0).powi(2) / known
        } else {
            degrees
        },
    })
}

/// Rows and trainings of tables that all have the same number of them.
fn alike(tables: &[Table]) -> Option<Shape> {
    let first = tables.first()?.shape;
    let same = |t: &Table| (t.shape.rows, t.shape.trainings) == (first.rows, first.trainings);
    tables.iter().all(same).then_some(first)
}

/// Random draws of the means of all rows on all data sets: `[draw][set][row]`. Examples are resampled (bootstrap). Trainings
/// deviate as those at hand do, with the rows' common variance and jointly on all sets, since a training is one student; with
/// one training they do not deviate. Empty where the tables do not have the same number of rows and trainings.
pub fn redrawn(tables: &[Table], draws: usize, seed: u64) -> Vec<Vec<Vec<f64>>> {
    let Some(shape) = alike(tables) else {
        return Vec::new();
    };
    let degrees = tables[0].degrees_of_trainings();
    // The deviation of a row's mean for each of the residuals: their sum with random weights has their covariance.
    let parts: Vec<Vec<f64>> = tables
        .iter()
        .map(|table| {
            let Some(training) = table.training_of_differences() else {
                return Vec::new();
            };
            // Without the part that resampling the examples already adds.
            let own = 0.5 * training.value;
            let kept = (own - table.training_by_example()).max(0.0);
            let share = if own > 0.0 { kept / own } else { 0.0 };
            let scale = (share / (degrees * shape.trainings as f64)).sqrt();
            let residuals = table.residuals().into_iter().flatten();
            residuals.map(|x| scale * x).collect()
        })
        .collect();
    let by_example: Vec<Vec<Vec<f64>>> = tables
        .iter()
        .map(|t| (0..shape.rows).map(|r| t.by_example(r, None)).collect())
        .collect();
    let mut rng = Rng::new(&[seed, 1]);
    let draw = |_| {
        // The variance is itself an estimate with this number of degrees of freedom.
        let chi: f64 = (0..degrees as usize).map(|_| rng.normal().powi(2)).sum();
        let scale = if chi > 0.0 {
            (degrees / chi).sqrt()
        } else {
            0.0
        };
        let mut means: Vec<Vec<f64>> = by_example
            .iter()
            .map(|rows| {
                let examples = rows[0].len();
                let mut sums = vec![0.0; rows.len()];
                for _ in 0..examples {
                    let e = rng.below(examples);
                    for (sum, row) in sums.iter_mut().zip(rows) {
                        *sum += row[e];
                    }
                }
                sums.iter().map(|sum| sum / examples as f64).collect()
            })
            .collect();
        for row in 0..shape.rows {
            let normal: Vec<f64> = (0..shape.rows * shape.trainings)
                .map(|_| scale * rng.normal())
                .collect();
            for (means, parts) in means.iter_mut().zip(&parts) {
                means[row] += parts.iter().zip(&normal).map(|(a, b)| a * b).sum::<f64>();
            }
        }
        means
    };
    (0..draws).map(draw).collect()
}

/// Holm's (1979) adjustment: p values such that rejecting those below 5% makes one false rejection or more with a
/// probability of 5% at most.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut before = 0.0f64;
    for (k, &i) in order.iter().enumerate() {
        let among = fault!("every p as the smallest", p.len() - k, p.len());
        before = before.max((among as f64 * p[i]).min(1.0));
        adjusted[i] = before;
    }
    adjusted
}

/// Mean of the middle half: a quarter of the values is left out at either end (rliable's aggregate, Agarwal et al. 2021), as
/// `scipy.stats.trim_mean(x, 0.25)`; `None` without values.
pub fn interquartile_mean(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let cut = sorted.len() / 4;
    mean(&sorted[cut..sorted.len() - cut])
}

/// Share of draws (see [`redrawn`]) in which each row is first; ties are shared.
pub fn first(redrawn: &[Vec<f64>]) -> Vec<f64> {
    let rows = redrawn.first().map_or(0, Vec::len);
    let mut shares = vec![0.0; rows];
    for means in redrawn {
        let best = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let leaders = means.iter().filter(|m| **m == best).count() as f64;
        for (share, mean) in shares.iter_mut().zip(means) {
            if *mean == best {
                *share += 1.0 / leaders / redrawn.len() as f64;
            }
        }
    }
    shares
}

/// The interval of this level of Spearman's rho between `redrawn` means and other scores of the same rows; `None` where
/// there are fewer than two rows, or `other` is constant.
pub fn rank_agreement(redrawn: &[Vec<f64>], other: &[f64], level: f64) -> Option<[f64; 2]> {
    let rho: Option<Vec<f64>> = redrawn.iter().map(|m| spearman(m, other)).collect();
    quantiles(&rho?, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use serde_json::Value;

    /// Made with scipy 1.16 and statsmodels 0.14 (`anova_lm`, `multipletests`, `trim_mean`, `ttest_1samp`).
    fn golden() -> Value {
        serde_json::from_str(include_str!("../tests/goldens/inference.json")).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f64> {
        let list = value.as_array().unwrap();
        list.iter().map(|x| x.as_f64().unwrap()).collect()
    }

    fn close(a: f64, b: &Value) {
        let b = b.as_f64().unwrap();
        assert!((a - b).abs() <= 1e-9 * b.abs().max(1.0), "{a}, {b}");
    }

    fn table() -> Table {
        let golden = golden();
        let shape: Vec<usize> = numbers(&golden["shape"])
            .iter()
            .map(|n| *n as usize)
            .collect();
        let shape = Shape {
            rows: shape[0],
            trainings: shape[1],
            samplings: shape[2],
            examples: shape[3],
        };
        Table::new(shape, numbers(&golden["values"])).unwrap()
    }

    #[test]
    fn mean_squares_are_those_of_the_analysis_of_variance() {
        let (table, golden) = (table(), golden());
        for (x, key) in [
            (table.contrast(0, None), "row0"),
            (table.contrast(0, Some(1)), "diff01"),
        ] {
            let squares = table.squares(&x, Square::default());
            for (ours, name) in [
                (squares.sampling, "sampling"),
                (squares.example, "example"),
                (squares.training_sampling, "training_sampling"),
                (squares.training_example, "training_example"),
                (squares.sampling_example, "sampling_example"),
                (squares.all, "all"),
            ] {
                close(ours.value, &golden[key][name]);
            }
        }
        close(
            table.training_within_rows().unwrap().value,
            &golden["within"],
        );
        let pooled = table.training_of_differences().unwrap();
        close(0.5 * pooled.value, &golden["row_by_training"]);
        assert_eq!(pooled.degrees, 4.0);
    }

    #[test]
    fn tests_over_examples_are_those_of_scipy() {
        let (table, golden) = (table(), golden());
        let students = table.students(0, 1);
        close(students.mean, &golden["students"]["mean"]);
        close(students.p(), &golden["students"]["p"]);
        for (ours, theirs) in students
            .interval(0.95)
            .iter()
            .zip(numbers(&golden["students"]["interval"]))
        {
            assert!((ours - theirs).abs() < 1e-6, "{ours}, {theirs}");
        }
        // All 32 ways to exchange five examples were counted.
        let exact = golden["randomisation"].as_f64().unwrap();
        let drawn = table.randomisation(0, 1, 20_000, 1);
        assert!((drawn - exact).abs() < 0.01, "{drawn}, {exact}");
    }

    #[test]
    fn quantiles_adjustments_and_trimmed_means_are_those_of_scipy_and_statsmodels() {
        let golden = golden();
        for case in golden["t"].as_array().unwrap() {
            let [degrees, p, wanted] = numbers(case)[..] else {
                panic!()
            };
            let ours = quantile(degrees, p);
            assert!((ours - wanted).abs() < 1e-6 * wanted, "{ours}, {wanted}");
        }
        let adjusted = holm(&numbers(&golden["holm"]["p"]));
        for (ours, theirs) in adjusted.iter().zip(numbers(&golden["holm"]["adjusted"])) {
            assert!((ours - theirs).abs() < 1e-12);
        }
        for key in ["iqm", "iqm8"] {
            close(
                interquartile_mean(&numbers(&golden[key]["values"])).unwrap(),
                &golden[key]["mean"],
            );
        }
    }

    /// A table of eight rows whose true means are 0. The trainings' part of the variance of a row's mean is `ratio` times
    /// the examples' part.
    fn simulated(seed: u64, trainings: usize, ratio: f64) -> Table {
        let (rows, samplings, examples) = (8, 2, 50);
        let mut rng = Rng::new(&[seed, trainings as u64, ratio.to_bits()]);
        let by_examples = 1.0 / examples as f64 + 1.0 / (examples * trainings) as f64;
        let spread = (ratio * by_examples * trainings as f64).sqrt();
        let shared: Vec<f64> = (0..examples).map(|_| rng.normal()).collect();
        let mut values = Vec::new();
        for _ in 0..rows {
            let own: Vec<f64> = (0..examples).map(|_| rng.normal()).collect();
            for _ in 0..trainings {
                let training = spread * rng.normal();
                let both: Vec<f64> = (0..examples).map(|_| rng.normal()).collect();
                for _ in 0..samplings {
                    values.extend(
                        (0..examples)
                            .map(|e| shared[e] + own[e] + training + both[e] + 0.5 * rng.normal()),
                    );
                }
            }
        }
        let shape = Shape {
            rows,
            trainings,
            samplings,
            examples,
        };
        Table::new(shape, values).unwrap()
    }

    #[test]
    fn intervals_of_95_percent_hold_93_to_97_percent_of_simulated_tables() {
        for trainings in [2, 3, 5] {
            for ratio in [0.0, 0.3, 3.0, 30.0] {
                // All pairs of neighbours of a table, so that the shares below have an error of about 0.5%.
                let tables = 1000;
                let held = |test: &(dyn Fn(&Table) -> [usize; 2] + Sync)| -> f64 {
                    let found: Vec<[usize; 2]> = (0..tables)
                        .into_par_iter()
                        .map(|seed| test(&simulated(seed, trainings, ratio)))
                        .collect();
                    let held: usize = found.iter().map(|f| f[0]).sum();
                    let of: usize = found.iter().map(|f| f[1]).sum();
                    held as f64 / of as f64
                };
                let zero_is_in = |e: Option<Estimate>| {
                    let [low, high] = e.unwrap().interval(0.95);
                    usize::from(low <= 0.0 && 0.0 <= high)
                };
                let differences = held(&|t| {
                    [
                        (0..4)
                            .map(|r| zero_is_in(t.difference(2 * r, 2 * r + 1)))
                            .sum(),
                        4,
                    ]
                });
                let rows = held(&|t| [(0..4).map(|r| zero_is_in(t.row(2 * r))).sum(), 4]);
                for (what, share) in [("differences", differences), ("rows", rows)] {
                    assert!(
                        (0.93..=0.97).contains(&share),
                        "{what}, {trainings} trainings, variance ratio {ratio}: {share}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_difference_across_sets_is_that_of_a_set_where_there_is_one() {
        for ratio in [0.3, 3.0, 30.0] {
            let table = simulated(4, 3, ratio);
            let one = table.difference(2, 5).unwrap();
            let across = difference_across(&[table], 2, 5).unwrap();
            for (a, b) in [
                (one.mean, across.mean),
                (one.variance, across.variance),
                (one.degrees, across.degrees),
            ] {
                assert!((a - b).abs() < 1e-9 * b.abs(), "{one:?}, {across:?}");
            }
        }
        let other = simulated(4, 2, 1.0);
        assert!(difference_across(&[simulated(4, 3, 1.0), other], 0, 1).is_none());
    }

    /// Three sets; the trainings' parts are the same on all of them, or independent.
    fn simulated_sets(seed: u64, ratio: f64, together: bool) -> Vec<Table> {
        (0..3)
            .map(|set| {
                let mut table = simulated(1000 * seed + set, 3, 0.0);
                let key = if together { 0 } else { set };
                let mut rng = Rng::new(&[seed, key, 7]);
                for values in table.values.chunks_mut(100) {
                    let training = ratio * rng.normal();
                    values.iter_mut().for_each(|x| *x += training);
                }
                table
            })
            .collect()
    }

    #[test]
    fn intervals_across_sets_hold_and_draws_vary_as_the_estimates_say() {
        for (ratio, together) in [(0.1, true), (1.0, true), (1.0, false)] {
            let held: usize = (0..1000u64)
                .into_par_iter()
                .map(|seed| {
                    let tables = simulated_sets(seed, ratio, together);
                    let held = |r: usize| {
                        let found = difference_across(&tables, 2 * r, 2 * r + 1).unwrap();
                        let [low, high] = found.interval(0.95);
                        usize::from(low <= 0.0 && 0.0 <= high)
                    };
                    (0..4).map(held).sum::<usize>()
                })
                .sum();
            let share = held as f64 / 4000.0;
            assert!(
                (0.93..=0.97).contains(&share),
                "{ratio}, {together}: {share}"
            );
            // The variance of a drawn difference, over that of its estimate.
            let ratios = (0..40u64).into_par_iter().map(|seed| {
                let tables = simulated_sets(seed, ratio, together);
                let across = |draw: &Vec<Vec<f64>>| {
                    draw.iter().map(|set| set[0] - set[1]).sum::<f64>() / 3.0
                };
                let drawn: Vec<f64> = redrawn(&tables, 500, seed).iter().map(across).collect();
                let variance = crate::stats::std(&drawn).unwrap().powi(2);
                variance / difference_across(&tables, 0, 1).unwrap().variance
            });
            let ratio = ratios.sum::<f64>() / 40.0;
            assert!((0.85..=1.4).contains(&ratio), "{together}: {ratio}");
        }
    }

    #[test]
    fn one_training_has_no_interval_over_trainings() {
        let table = simulated(1, 1, 1.0);
        assert!(table.row(0).is_none() && table.difference(0, 1).is_none());
        assert!(table.students(0, 1).variance > 0.0);
        assert!(difference_across(std::slice::from_ref(&table), 0, 1).is_none());
        let draws = redrawn(&[table], 3, 1);
        assert_eq!((draws.len(), draws[0].len(), draws[0][0].len()), (3, 1, 8));
    }

    #[test]
    fn more_trainings_decide_what_fewer_do_not() {
        let table = simulated(5, 3, 3.0);
        let found = table.difference(0, 1).unwrap();
        match table.trainings_to_decide(0, 1, 0.8, 10_000) {
            Some(n) => assert!(n > 3 || found.detectable(0.8) <= found.mean.abs()),
            None => assert!(found.detectable(0.8) > found.mean.abs()),
        }
        assert!(found.detectable(0.9) > found.detectable(0.8));
        assert!(found.detectable(0.8) > found.half_width(0.95));
    }

    #[test]
    fn a_row_far_ahead_is_first_and_ranks_agree_with_themselves() {
        let mut table = simulated(2, 3, 1.0);
        let size = table.values.len() / 8;
        for row in 0..8 {
            for x in &mut table.values[row * size..(row + 1) * size] {
                *x += 100.0 * row as f64;
            }
        }
        let on_one = |table: Table| -> Vec<Vec<f64>> { redrawn(&[table], 500, 3).concat() };
        let redrawn = on_one(table);
        let shares = first(&redrawn);
        assert!(shares[7] > 0.999 && (shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        let paper: Vec<f64> = (0..8).map(f64::from).collect();
        assert_eq!(rank_agreement(&redrawn, &paper, 0.95), Some([1.0, 1.0]));
        assert_eq!(rank_agreement(&redrawn, &[1.0; 8], 0.95), None);
        let redrawn = on_one(simulated(3, 3, 1.0));
        let [low, high] = rank_agreement(&redrawn, &paper, 0.95).unwrap();
        assert!(low < high, "{low}, {high}");
    }

    #[test]
    fn what_is_no_table_is_refused() {
        let shape = Shape {
            rows: 1,
            trainings: 1,
            samplings: 1,
            examples: 2,
        };
        assert!(Table::new(shape, vec![1.0, 2.0]).is_some());
        assert!(Table::new(shape, vec![1.0]).is_none());
        assert!(Table::new(shape, vec![1.0, f64::NAN]).is_none());
        assert!(
            Table::new(
                Shape {
                    examples: 1,
                    ..shape
                },
                vec![1.0]
            )
            .is_none()
        );
        assert_eq!(holm(&[]), Vec::<f64>::new());
        assert_eq!(interquartile_mean(&[]), None);
        // Equal everywhere: no variance, no difference.
        let table = Table::new(
            Shape {
                trainings: 2,
                rows: 2,
                ..shape
            },
            vec![1.0; 8],
        )
        .unwrap();
        let d = table.difference(0, 1).unwrap();
        assert_eq!((d.mean, d.variance, d.p()), (0.0, 0.0, 1.0));
        assert_eq!(table.effect(0, 1), None);
    }
}
