//! The kernels: one cube per row, whose units stride over the vocabulary.

use cubecl::prelude::*;

use super::formulas::{Entry, Formula, Numbers, Peak, Terms, peak_g, terms};
use super::math::{
    Difference, difference, exp_of_difference, ln, ln_1p, ln_of_1_plus, power, scaled_phi,
};

/// Status codes in a row's report; 0 for a good row.
pub(super) mod status {
    pub const STUDENT_NOT_FINITE: u32 = 1;
    pub const STUDENT_EMPTY: u32 = 2;
    pub const TEACHER_NOT_FINITE: u32 = 3;
    pub const TEACHER_EMPTY: u32 = 4;
    pub const IMPOSSIBLE_LABEL: u32 = 5;
}

// Infinities and NaN are detected by their bits: a shader's compiler may assume that there are none.
const MINUS_INFINITY: u32 = 0xff80_0000;
const INFINITY: u32 = 0x7f80_0000;
const WITHOUT_SIGN: u32 = 0x7fff_ffff;

/// No finite logit seen.
const NONE: u32 = u32::MAX;
/// Flags of a row: an entry is -inf; an entry is NaN or +inf.
const MASKED: u32 = 1;
const BAD: u32 = 2;

/// A row's normaliser: turns logits into probabilities.
#[derive(CubeType)]
struct Norm {
    max: f32,
    /// Index of `max`, or `NONE`.
    peak: u32,
    /// 1 - the probability of the largest logit, from the sum of the others: a difference loses its digits near 0.
    rest: f32,
    /// Log of the sum of e^(z - max).
    ln_sum: f32,
    /// 1 / that sum.
    scale: f32,
    flags: u32,
    /// See [`difference`].
    zero: u32,
}

/// A 0 that the compiler does not know: no vocabulary has 2^31 tokens.
#[cube]
fn unknown_zero(vocab: usize) -> u32 {
    (vocab as u32) >> 31u32
}

#[cube]
fn is_masked(logit: f32) -> bool {
    u32::reinterpret(logit) == MINUS_INFINITY
}

/// One pass over a row: its largest logit, and the sum of e^(z - max) over the *other* entries, rescaled whenever a larger
/// logit is found. The largest entry, whose term is 1, is left out: the sum keeps its digits where the others are small.
#[cube]
fn normalize(logits: &Tensor<f32>, start: usize, vocab: usize, #[comptime] units: usize) -> Norm {
    let unit = UNIT_POS as usize;
    let zero = unknown_zero(vocab);
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
            rest = (rest + 1.0f32) * exp_of_difference(max, x, zero);
            max = x;
            peak = j as u32;
        } else {
            rest += exp_of_difference(x, max, zero);
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
                    let less = (rests[unit] + 1.0f32) * exp_of_difference(mine, theirs, zero);
                    rests[unit] = rests[other] + less;
                    maxima[unit] = theirs;
                    peaks[unit] = peaks[other];
                } else {
                    let more = (rests[other] + 1.0f32) * exp_of_difference(theirs, mine, zero);
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
        zero,
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
        out = exp_of_difference(logit, norm.max, norm.zero) * norm.scale;
    }
    out
}

/// The student's likeliest entry that neither model masks; `NONE` if there is none. It takes a pass over the row only where
/// the teacher masks the student's likeliest entry of all.
#[cube]
fn counting_peak(
    student: &Tensor<f32>,
    teacher: &Tensor<f32>,
    start: usize,
    vocab: usize,
    peak: u32,
    #[comptime] units: usize,
) -> u32 {
    let unit = UNIT_POS as usize;
    let mut end = 0usize;
    if peak != NONE && is_masked(teacher[start + peak as usize]) {
        end = vocab;
    }
    let mut max = 0.0f32;
    let mut best = NONE.runtime();
    let mut j = unit;
    while j < end {
        let z = student[start + j];
        if !is_masked(z) && !is_masked(teacher[start + j]) && (best == NONE || z > max) {
            max = z;
            best = j as u32;
        }
        j += units;
    }
    let mut maxima = Shared::<[f32]>::new_slice(units);
    let mut bests = Shared::<[u32]>::new_slice(units);
    maxima[unit] = max;
    bests[unit] = best;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if unit < half {
            let other = unit + half;
            if bests[other] != NONE && (bests[unit] == NONE || maxima[other] > maxima[unit]) {
                maxima[unit] = maxima[other];
                bests[unit] = bests[other];
            }
        }
        sync_cube();
        half /= 2;
    }
    select(end == 0, peak, bests[0])
}

/// The peak, to which all entries are relative.
#[derive(CubeType)]
struct Origin {
    z: f32,
    /// The teacher's logit minus the student's.
    gap: Difference,
    peak: Peak,
    /// g at the peak.
    g: f32,
}

#[cube]
fn origin(
    z: f32,
    t: f32,
    student: &Norm,
    teacher: &Norm,
    numbers: &Numbers,
    #[comptime] formula: Formula,
) -> Origin {
    let (v, u) = (t - teacher.max, z - student.max);
    let peak = Peak {
        d: (v - u) - (teacher.ln_sum - student.ln_sum),
        lq: u - student.ln_sum,
    };
    let g = peak_g(&peak, numbers, formula);
    Origin {
        z,
        gap: difference(t, z, student.zero),
        peak,
        g,
    }
}

#[cube]
fn entry(z: f32, t: f32, student: &Norm, teacher: &Norm, origin: &Origin) -> Entry {
    let gap = difference(t, z, student.zero);
    Entry {
        p: probability(t, teacher),
        q: probability(z, student),
        // in two steps: a rounded max + ln_sum would lose the digits in which a probability near 1 differs from 1
        lp: (t - teacher.max) - teacher.ln_sum,
        lq: (z - student.max) - student.ln_sum,
        r: (gap.high - origin.gap.high) + (gap.low - origin.gap.low),
        u: z - origin.z,
    }
}

/// f and h of an entry. Where it is left out, f is 0 and h is -q times g at the peak.
#[cube]
fn counted_terms(
    z: f32,
    t: f32,
    student: &Norm,
    teacher: &Norm,
    origin: &Origin,
    numbers: &Numbers,
    #[comptime] formula: Formula,
) -> Terms {
    let mut f = 0.0f32;
    let mut h = -probability(z, student) * origin.g;
    let mut slope = 0.0f32;
    if !is_masked(z) && !is_masked(t) {
        let e = entry(z, t, student, teacher, origin);
        let all = terms(&e, &origin.peak, numbers, formula);
        f = all.f;
        h = all.h;
        slope = all.slope;
    }
    Terms { f, h, slope }
}

/// q (e^r - 1) of an entry. Summed over all entries it is e^-d - 1, with d = log(p/q) at the peak.
#[cube]
fn excess(z: f32, t: f32, student: &Norm, teacher: &Norm, origin: &Origin) -> f32 {
    let e = entry(z, t, student, teacher, origin);
    let by_base = e.q * power(min(e.r, 40.0f32));
    let moved = select(e.r < 40.0f32, by_base, e.p / power(origin.peak.d));
    scaled_phi(1.0f32, e.q, moved, e.r)
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
        if j as u32 == norm.peak && norm.rest < 0.25f32 {
            // keeps the digits of a probability near 1
            sum -= x * ln_of_1_plus(1e-9f32 - norm.rest);
        } else {
            sum -= x * ln(x + 1e-9f32);
        }
        j += units;
    }
    total(sum, units)
}

/// Bits of a logit's exponential e^(z - max); they have the order of the exponentials.
#[cube]
fn weight_bits(logit: f32, norm: &Norm) -> u32 {
    let mut out = 0u32;
    if !is_masked(logit) {
        out = u32::reinterpret(exp_of_difference(logit, norm.max, norm.zero));
    }
    out
}

/// Bits of the number after 1, the largest exponential.
const ABOVE_ONE: u32 = 0x3f80_0001;

/// AKL's share of the forward half: the gap `sum |p - q|` in the teacher's head over the whole gap, 0.5 without a gap. The
/// head's last weight is found by bisection of the weights' bits: each pass sums the mass above a cut.
#[cube]
#[allow(clippy::too_many_arguments)]
fn head_share(
    student: &Tensor<f32>,
    teacher: &Tensor<f32>,
    start: usize,
    vocab: usize,
    q: &Norm,
    p: &Norm,
    numbers: &Numbers,
    #[comptime] units: usize,
) -> f32 {
    let unit = UNIT_POS as usize;
    let (mu, to_tail) = (numbers.a, numbers.b);
    // The mass from `low` on reaches mu, that from `high` on does not.
    let mut low = 0u32;
    let mut high = ABOVE_ONE.runtime();
    let mut above = 0.0f32;
    // As often for every row: all units must meet at the barriers.
    for _ in 0..31 {
        let cut = low + (high - low) / 2u32;
        let mut mass = 0.0f32;
        let mut j = unit;
        while j < vocab {
            let bits = weight_bits(teacher[start + j], p);
            if bits >= cut {
                mass += f32::reinterpret(bits);
            }
            j += units;
        }
        let mass = total(mass, units) * p.scale;
        sync_cube();
        if high - low > 1u32 {
            if mass >= mu {
                low = cut;
            } else {
                high = cut;
                above = mass;
            }
        }
    }
    // Of the tokens whose weight is the last, the first ones belong to the head.
    let mut equal = 0.0f32;
    let mut j = unit;
    while j < vocab {
        if weight_bits(teacher[start + j], p) == low {
            equal += 1.0f32;
        }
        j += units;
    }
    let equal = total(equal, units);
    let weight = f32::reinterpret(low) * p.scale;
    let mut count = equal;
    if low != 0u32 {
        count = ((mu - above) / weight).ceil() - to_tail;
    }
    if above == 0.0f32 && to_tail > 0.5f32 {
        // the first token always
        count = max(count, 1.0f32);
    }
    let mut end = vocab;
    if count < equal {
        end = 0usize;
        let mut seen = 0.0f32;
        while end < vocab && seen + 0.5f32 < count {
            if weight_bits(teacher[start + end], p) == low {
                seen += 1.0f32;
            }
            end += 1usize;
        }
    }
    let mut head = 0.0f32;
    let mut tail = 0.0f32;
    let mut j = unit;
    while j < vocab {
        let t = teacher[start + j];
        let mut gap = (probability(t, p) - probability(student[start + j], q)).abs();
        if j as u32 == p.peak && p.peak == q.peak {
            // not a difference of two numbers near 1
            gap = (q.rest - p.rest).abs();
        }
        let bits = weight_bits(t, p);
        if bits >= high || (bits == low && j < end) {
            head += gap;
        } else {
            tail += gap;
        }
        j += units;
    }
    let head = total(head, units);
    let tail = total(tail, units);
    let mut out = 0.5f32;
    if head + tail > 0.0f32 {
        out = head / (head + tail);
    }
    out
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
    let counting = counting_peak(student, teacher, start, vocab, q.peak, units);

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
    if comptime!(formula == Formula::Adaptive) {
        let share = head_share(student, teacher, start, vocab, &q, &p, numbers, units);
        weighted.a = share;
        weighted.b = 1.0f32 - share;
    }
    let numbers = &weighted;

    let peak = q.peak as usize;
    let mut at = 0usize;
    if counting != NONE {
        at = counting as usize;
    }
    let (z, t) = (student[start + at], teacher[start + at]);
    let mut origin = origin(z, t, &q, &p, numbers, formula);
    if counting == NONE {
        // every entry is left out
        origin.g = 0.0f32.runtime();
    }
    let mut f = 0.0f32;
    let mut h = 0.0f32;
    let mut slope = 0.0f32;
    let mut sum = 0.0f32;
    let by_d = comptime!(formula.is_by_d());
    let mut j = unit;
    while j < vocab {
        let (z, t) = (student[start + j], teacher[start + j]);
        let both = counted_terms(z, t, &q, &p, &origin, numbers, formula);
        f += both.f;
        if j != peak {
            h += both.h;
        }
        if comptime!(by_d) {
            slope += both.slope;
            sum += excess(z, t, &q, &p, &origin);
        }
        j += units;
    }
    let f = total(f, units);
    let mut others = total(h, units);
    if comptime!(by_d) {
        // The normalisers may err by more than the distributions differ: log(p/q) at the peak is recomputed from their sums,
        // which are 1.
        let slope = total(slope, units);
        let sum = total(sum, units);
        if (q.flags | p.flags) & MASKED == 0 && sum.abs() < 0.25f32 {
            let d = -ln_of_1_plus(sum);
            others += (d - origin.peak.d) * slope;
            origin.peak.d = d;
        }
    }

    if unit == 0 {
        value[row] = f;
        report[row] = bad_row(&q, &p);
    }
    if q.peak != NONE {
        let (z, t) = (student[start + peak], teacher[start + peak]);
        let at_peak = counted_terms(z, t, &q, &p, &origin, numbers, formula).h;
        let all = others + at_peak;
        let mut j = unit;
        while j < vocab {
            let z = student[start + j];
            if j == peak {
                // h - q sum h, whose two terms nearly cancel where q is near 1
                grad[start + j] = at_peak * q.rest - q.scale * others;
            } else {
                let t = teacher[start + j];
                let both = counted_terms(z, t, &q, &p, &origin, numbers, formula);
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
