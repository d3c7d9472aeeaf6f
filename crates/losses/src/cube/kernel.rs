//! The kernels: a cube a row, its units striding over the vocabulary.

use cubecl::prelude::*;

use super::formulas::{Entry, Formula, Numbers, Terms, dropped, terms};
use super::math::{exp, ln, ln_1p};

/// What a row may be reported as; 0 where it is good.
pub(super) mod status {
    pub const STUDENT_NOT_FINITE: u32 = 1;
    pub const STUDENT_EMPTY: u32 = 2;
    pub const TEACHER_NOT_FINITE: u32 = 3;
    pub const TEACHER_EMPTY: u32 = 4;
    pub const IMPOSSIBLE_LABEL: u32 = 5;
}

// Infinities and NaN are told by their bits: shaders may assume that there are none.
const MINUS_INFINITY: u32 = 0xff80_0000;
const INFINITY: u32 = 0x7f80_0000;
const WITHOUT_SIGN: u32 = 0x7fff_ffff;

/// No finite logit seen.
const NONE: u32 = u32::MAX;
/// Flags of a row: an entry is -inf; an entry is NaN or +inf.
const MASKED: u32 = 1;
const BAD: u32 = 2;

/// What turns a row's logits into probabilities.
#[derive(CubeType)]
struct Norm {
    max: f32,
    /// Index of `max`, or `NONE`.
    peak: u32,
    /// 1 - the probability of the largest logit, which a difference would lose where it is near 0.
    rest: f32,
    /// Log of the sum of e^(z - max).
    ln_sum: f32,
    /// 1 / that sum.
    scale: f32,
    flags: u32,
}

#[cube]
fn is_masked(logit: f32) -> bool {
    u32::reinterpret(logit) == MINUS_INFINITY
}

/// One pass over a row: its largest logit, and the sum of e^(z - max) over the *other* entries, corrected
/// whenever a larger logit turns up. Leaving out the largest, whose term is 1, keeps the digits of the
/// sum where the others are small.
#[cube]
fn normalize(logits: &Tensor<f32>, start: usize, vocab: usize, #[comptime] units: usize) -> Norm {
    let unit = UNIT_POS as usize;
    let mut max = 0.0f32;
    let mut peak = NONE.runtime();
    let mut rest = 0.0f32;
    let mut flag = 0u32;
    let mut j = unit;
    while j < vocab {
        let x = logits[start + j];
        let bits = u32::reinterpret(x);
        if bits == MINUS_INFINITY {
            flag |= MASKED;
        } else if (bits & WITHOUT_SIGN) >= INFINITY {
            flag |= BAD;
        } else if peak == NONE {
            max = x;
            peak = j as u32;
        } else if x > max {
            rest = (rest + 1.0f32) * exp(max - x);
            max = x;
            peak = j as u32;
        } else {
            rest += exp(x - max);
        }
        j += units;
    }
    let mut maxima = Shared::<[f32]>::new_slice(units);
    let mut peaks = Shared::<[u32]>::new_slice(units);
    let mut rests = Shared::<[f32]>::new_slice(units);
    let mut flags = Shared::<[u32]>::new_slice(units);
    maxima[unit] = max;
    peaks[unit] = peak;
    rests[unit] = rest;
    flags[unit] = flag;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = unit + half;
            let their_flags = flags[other];
            flags[unit] |= their_flags;
            let (mine, theirs) = (maxima[unit], maxima[other]);
            if peaks[other] != NONE {
                if peaks[unit] == NONE {
                    maxima[unit] = theirs;
                    peaks[unit] = peaks[other];
                    rests[unit] = rests[other];
                } else if theirs > mine {
                    rests[unit] = rests[other] + (rests[unit] + 1.0f32) * exp(mine - theirs);
                    maxima[unit] = theirs;
                    peaks[unit] = peaks[other];
                } else {
                    let more = (rests[other] + 1.0f32) * exp(theirs - mine);
                    rests[unit] += more;
                }
            }
        }
        sync_cube();
        half /= 2;
    }
    let rest = rests[0];
    let scale = 1.0f32 / (1.0f32 + rest);
    Norm {
        max: maxima[0],
        peak: peaks[0],
        rest: rest * scale,
        ln_sum: ln_1p(rest),
        scale,
        flags: flags[0],
    }
}

/// Sum over the units.
#[cube]
fn total(x: f32, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[f32]>::new_slice(units);
    sums[unit] = x;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = sums[unit + half];
            sums[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    sums[0]
}

#[cube]
fn probability(logit: f32, norm: &Norm) -> f32 {
    let mut out = 0.0f32;
    if !is_masked(logit) {
        out = exp(logit - norm.max) * norm.scale;
    }
    out
}

/// f and h of an entry, 0 where it is left out. `dropped` is what h is to be given back.
#[cube]
fn entry(
    z: f32,
    t: f32,
    student: &Norm,
    teacher: &Norm,
    numbers: &Numbers,
    dropped: f32,
    #[comptime] formula: Formula,
) -> Terms {
    let mut f = 0.0f32;
    let mut h = 0.0f32;
    if !is_masked(z) && !is_masked(t) {
        let q = probability(z, student);
        let e = Entry {
            p: probability(t, teacher),
            q,
            // in two steps: the sum of max and ln_sum would round away the digits that tell a
            // probability near 1 from 1
            lp: (t - teacher.max) - teacher.ln_sum,
            lq: (z - student.max) - student.ln_sum,
        };
        let both = terms(&e, numbers, formula);
        f = both.f;
        h = both.h + dropped * q;
    }
    Terms { f, h }
}

/// The sum of -x log(x + 1e-9), the published code's entropy.
#[cube]
fn entropy(
    logits: &Tensor<f32>,
    start: usize,
    vocab: usize,
    norm: &Norm,
    #[comptime] units: usize,
) -> f32 {
    let mut sum = 0.0f32;
    let mut j = UNIT_POS as usize;
    while j < vocab {
        let x = probability(logits[start + j], norm);
        sum -= x * ln(x + 1e-9f32);
        j += units;
    }
    total(sum, units)
}

/// Value and gradient of a divergence, row by row.
#[cube(launch)]
pub(super) fn divergence_kernel(
    student: &Tensor<f32>,
    teacher: &Tensor<f32>,
    value: &mut Tensor<f32>,
    grad: &mut Tensor<f32>,
    report: &mut Tensor<u32>,
    numbers: &Numbers,
    #[comptime] formula: Formula,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row >= student.shape(0) {
        terminate!();
    }
    let vocab = student.shape(1);
    let start = row * vocab;
    let unit = UNIT_POS as usize;
    let q = normalize(student, start, vocab, units);
    let p = normalize(teacher, start, vocab, units);

    let mut weighted = Numbers {
        a: numbers.a,
        b: numbers.b,
        c: numbers.c,
        d: numbers.d,
    };
    if comptime!(formula == Formula::Bidirectional) {
        let student_is_flatter =
            entropy(student, start, vocab, &q, units) > entropy(teacher, start, vocab, &p, units);
        weighted.a = select(student_is_flatter, 1.0f32, numbers.a);
        weighted.b = select(student_is_flatter, numbers.a, 1.0f32);
    }
    let numbers = &weighted;
    // What h may leave out where all of q is summed: not where the teacher masks entries.
    let dropped = select(p.flags & MASKED != 0, dropped(numbers, formula), 0.0f32);

    let peak = q.peak as usize;
    let mut f = 0.0f32;
    let mut h = 0.0f32;
    let mut j = unit;
    while j < vocab {
        let both = entry(
            student[start + j],
            teacher[start + j],
            &q,
            &p,
            numbers,
            dropped,
            formula,
        );
        f += both.f;
        if j != peak {
            h += both.h;
        }
        j += units;
    }
    let f = total(f, units);
    let others = total(h, units);

    if unit == 0 {
        value[row] = f;
        report[row] = bad_row(&q, &p);
    }
    if q.peak != NONE {
        let at_peak = entry(
            student[start + peak],
            teacher[start + peak],
            &q,
            &p,
            numbers,
            dropped,
            formula,
        )
        .h;
        let all = others + at_peak;
        let mut j = unit;
        while j < vocab {
            let z = student[start + j];
            if j == peak {
                // h - q sum h, whose two terms nearly cancel where q is near 1
                grad[start + j] = at_peak * q.rest - q.scale * others;
            } else {
                let both = entry(z, teacher[start + j], &q, &p, numbers, dropped, formula);
                grad[start + j] = both.h - probability(z, &q) * all;
            }
            j += units;
        }
    }
}

#[cube]
fn bad_row(student: &Norm, teacher: &Norm) -> u32 {
    let mut out = 0u32;
    if student.flags & BAD != 0 {
        out = status::STUDENT_NOT_FINITE.runtime();
    } else if student.peak == NONE {
        out = status::STUDENT_EMPTY.runtime();
    } else if teacher.flags & BAD != 0 {
        out = status::TEACHER_NOT_FINITE.runtime();
    } else if teacher.peak == NONE {
        out = status::TEACHER_EMPTY.runtime();
    }
    out
}

/// Cross-entropy with a label, and its gradient, row by row.
#[cube(launch)]
pub(super) fn cross_entropy_kernel(
    student: &Tensor<f32>,
    labels: &Tensor<u32>,
    value: &mut Tensor<f32>,
    grad: &mut Tensor<f32>,
    report: &mut Tensor<u32>,
    #[comptime] units: usize,
) {
    let row = CUBE_POS;
    if row >= student.shape(0) {
        terminate!();
    }
    let vocab = student.shape(1);
    let start = row * vocab;
    let unit = UNIT_POS as usize;
    let q = normalize(student, start, vocab, units);
    let label = labels[row] as usize;
    if unit == 0 {
        let logit = student[start + label];
        value[row] = q.ln_sum - (logit - q.max);
        let mut out = bad_row(&q, &q);
        if out == 0 && is_masked(logit) {
            out = status::IMPOSSIBLE_LABEL.runtime();
        }
        report[row] = out;
    }
    let mut j = unit;
    while j < vocab {
        let x = probability(student[start + j], &q);
        let mut g = x;
        if j == label {
            g = select(label == q.peak as usize, -q.rest, x - 1.0f32);
        }
        grad[start + j] = g;
        j += units;
    }
}
