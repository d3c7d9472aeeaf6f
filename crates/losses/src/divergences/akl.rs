//! Adaptive KL (Wu et al. 2024, AKL): forward and reverse KL, weighted by the gap between teacher and student in the head and
//! in the tail.

use abkd_host::{LANES, dispatch};
#[cfg(feature = "burn")]
use burn::tensor::Tensor;

use super::kl::TwoKl;
#[cfg(feature = "burn")]
use super::kl::two_kl;
use super::{Definition, Form, Parameter, SHARE};
#[cfg(feature = "cube")]
use crate::cube::Formula;
#[cfg(feature = "burn")]
use crate::reference::{Pair, Terms};
use crate::row::RowView;
use crate::row::passes::{BLOCK, add, around};
use crate::{Divergence, Fidelity};

pub(super) static DEFINITION: Definition = Definition {
    id: "akl",
    label: "AKL",
    golden: None,
    formula: "g_head KL(p,q) + g_tail KL(q,p), g = share of sum |p - q| in the teacher's head and tail",
    parameters: &[Parameter {
        name: "mu",
        default: 0.5,
        range: SHARE,
    }],
    default_fidelity: Fidelity::Official,
    row: |job, [mu, _], fidelity| job.rows(|row| weighted(row, mu, fidelity)),
    form: Form::Sum {
        #[cfg(feature = "burn")]
        tensors: |pair, [mu, _], fidelity| tensors(pair, mu, fidelity),
        #[cfg(feature = "cube")]
        cube: Some(|[mu, _], fidelity| {
            let to_tail = f64::from(fidelity == Fidelity::Official);
            Some((Formula::Adaptive, [mu, to_tail, 1.0, 0.0]))
        }),
    },
};

impl Divergence {
    /// Adaptive KL: `g_h FKL + g_t RKL`, where g is the share of the gap `sum |p - q|` that lies in the head (the teacher's
    /// most likely tokens up to the mass mu, in `[0, 1]`) and in the tail; constant for the gradient, 0.5 each where p = q.
    /// Official: the token that crosses mu belongs to the tail, the first token always to the head. Paper: it belongs to
    /// the head.
    pub const fn akl(mu: f64) -> Self {
        Self::new(&DEFINITION, [mu, 0.0])
    }
}

fn weighted(row: &RowView, mu: f64, fidelity: Fidelity) -> TwoKl {
    let (head, tail) = akl_gaps(row, mu, fidelity);
    let share = if head + tail > 0.0 {
        head / (head + tail)
    } else {
        0.5
    };
    TwoKl::new(share, 1.0 - share, 1.0)
}

/// Number of cuts through an interval of exponentials; one pass sums the mass above each cut.
const CUTS: usize = 4;
/// An interval with at most this many tokens is sorted.
const FEW: f64 = 512.0;
const OCTAVE: u32 = 1 << 23;

/// Sums of |p - q| over the head and the tail of the teacher's distribution.
///
/// The head is the likeliest tokens whose total mass stays below `mu`, and always the first one (official), or the fewest
/// whose mass reaches `mu` (paper). Each pass narrows the interval of exponentials in which the mass reaches `mu`; only the
/// tokens in the last one are sorted. Intervals are of float bits, which have the order of the (positive) numbers.
fn akl_gaps(row: &RowView, mu: f64, fidelity: Fidelity) -> (f64, f64) {
    let norms = row.norms;
    let scale = f64::from(norms.p.scale);
    // `peak_gap` avoids a difference of two numbers near 1. In a masked row the peak may be another entry, where it is no
    // more exact than the difference.
    let peak = f64::from(norms.peak.entry.p - norms.peak.entry.q).abs();
    let peak = if norms.masked() {
        peak
    } else {
        norms.peak_gap().abs()
    };
    let gap = |token: usize| {
        if token == norms.at {
            return peak;
        }
        f64::from((row.p[token] * norms.p.scale - row.q[token] * norms.q.scale).abs())
    };
    // Masses of the exponentials from `high` on, and from `low` on.
    let (mut low, mut high) = (0, dispatch_largest(row.p) + 1);
    let (mut mass, mut mass_low) = (0.0, 1.0);
    let mut step = OCTAVE;
    while high - low > 1 && mass_low - mass > FEW * scale * f64::from(f32::from_bits(low)) {
        let cuts: [u32; CUTS] =
            std::array::from_fn(|i| high.saturating_sub((i as u32 + 1) * step).max(low));
        let masses = dispatch_masses(row.p, cuts.map(f32::from_bits));
        for (cut, sum) in cuts.into_iter().zip(masses) {
            if sum * scale >= mu {
                (low, mass_low) = (cut, sum * scale);
                break;
            }
            (high, mass) = (cut, sum * scale);
        }
        step = if low == 0 {
            2 * step
        } else {
            (high - low).div_ceil(CUTS as u32 + 1)
        };
    }
    let cuts = [f32::from_bits(high), 0.0];
    let [mut head, total] = dispatch_gaps(row, cuts);
    if row.p[norms.at] >= cuts[0] {
        head += peak;
    }
    let total = total + peak;
    let mut members = dispatch_members(row.p, low, high);
    members.sort_unstable();
    let likeliest_is_there = mass == 0.0;
    for (i, member) in members.into_iter().enumerate() {
        let token = member as u32 as usize;
        let before = mass;
        mass += f64::from(row.p[token] * norms.p.scale);
        let inside = match fidelity {
            Fidelity::Official => (likeliest_is_there && i == 0) || mass < mu,
            Fidelity::Paper => before < mu,
        };
        if !inside {
            break;
        }
        head += gap(token);
    }
    (head, (total - head).max(0.0))
}

/// Bits of the largest exponential.
#[inline(always)]
fn largest(e: &[f32]) -> u32 {
    e.iter().fold(0, |largest, e| largest.max(e.to_bits()))
}

/// For each cut the sum of the exponentials not below it.
#[inline(always)]
fn masses(e: &[f32], cuts: [f32; CUTS]) -> [f64; CUTS] {
    let mut totals = [[0.0f64; LANES]; CUTS];
    for block in e.chunks(BLOCK) {
        let (chunks, rest) = block.as_chunks::<LANES>();
        for (total, cut) in totals.iter_mut().zip(cuts) {
            let mut sum = [0.0f32; LANES];
            for chunk in chunks {
                add_from(&mut sum, chunk, cut);
            }
            add_from(&mut sum, &padded(rest), cut);
            add(total, sum);
        }
    }
    totals.map(|lanes| lanes.iter().sum())
}

/// For each cut the sum of |p - q| where the teacher's exponential is not below it, without the peak.
#[inline(always)]
fn gaps(row: &RowView, cuts: [f32; 2]) -> [f64; 2] {
    let mut totals = [[0.0f64; LANES]; 2];
    for side in around(row.norms.at, row.p.len()) {
        let (p, q) = (&row.p[side.clone()], &row.q[side]);
        for (p, q) in p.chunks(BLOCK).zip(q.chunks(BLOCK)) {
            let (ps, p_rest) = p.as_chunks::<LANES>();
            let (qs, q_rest) = q.as_chunks::<LANES>();
            for (total, cut) in totals.iter_mut().zip(cuts) {
                let mut sum = [0.0f32; LANES];
                for (p, q) in ps.iter().zip(qs) {
                    add_gaps_from(&mut sum, p, q, row, cut);
                }
                add_gaps_from(&mut sum, &padded(p_rest), &padded(q_rest), row, cut);
                add(total, sum);
            }
        }
    }
    totals.map(|lanes| lanes.iter().sum())
}

/// A row's last few entries, padded with zeros to a chunk.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut chunk = [0.0; LANES];
    chunk[..rest.len()].copy_from_slice(rest);
    chunk
}

#[inline(always)]
fn add_gaps_from(
    sum: &mut [f32; LANES],
    p: &[f32; LANES],
    q: &[f32; LANES],
    row: &RowView,
    cut: f32,
) {
    let scales = [row.norms.p.scale, row.norms.q.scale];
    for i in 0..LANES {
        let gap = (p[i] * scales[0] - q[i] * scales[1]).abs();
        sum[i] += if p[i] >= cut { gap } else { 0.0 };
    }
}

#[inline(always)]
fn add_from(sum: &mut [f32; LANES], e: &[f32; LANES], cut: f32) {
    for i in 0..LANES {
        sum[i] += if e[i] >= cut { e[i] } else { 0.0 };
    }
}

/// Tokens whose exponentials' bits are in `low..high`, as sort keys: the likelier, then the earlier token comes first, and
/// the lower half is the token.
#[inline(always)]
fn members(e: &[f32], low: u32, high: u32) -> Vec<u64> {
    let inside = |e: f32| e.to_bits().wrapping_sub(low) < high - low;
    let mut members = Vec::new();
    for (chunk, e) in e.chunks(LANES).enumerate() {
        if !e.iter().fold(false, |any, &e| any | inside(e)) {
            continue;
        }
        for (i, e) in e.iter().enumerate() {
            if inside(*e) {
                let token = (chunk * LANES + i) as u64;
                members.push((u64::from(high - e.to_bits()) << 32) | token);
            }
        }
    }
    members
}

dispatch!(dispatch_largest => largest(e: &[f32]) -> u32);
dispatch!(dispatch_masses => masses(e: &[f32], cuts: [f32; CUTS]) -> [f64; CUTS]);
dispatch!(dispatch_gaps => gaps(row: &RowView, cuts: [f32; 2]) -> [f64; 2]);
dispatch!(dispatch_members => members(e: &[f32], low: u32, high: u32) -> Vec<u64>);

#[cfg(feature = "burn")]
fn tensors(pair: &Pair, mu: f64, fidelity: Fidelity) -> Terms {
    let share = akl_share(pair, mu, fidelity);
    two_kl(share.clone(), share.neg() + 1.0, 1.0, pair)
}

/// Share of the forward half in AKL: the head's gap over both gaps, `[N, 1]`.
#[cfg(feature = "burn")]
fn akl_share(pair: &Pair, mu: f64, fidelity: Fidelity) -> Tensor<2> {
    let (sorted, order) = pair.p.prob.clone().sort_descending_with_indices(1);
    let mass = sorted.clone().cumsum(1);
    let inside = match fidelity {
        Fidelity::Official => {
            let [n, _] = sorted.dims();
            let first = Tensor::ones([n, 1], &sorted.device());
            mass.lower_elem(mu)
                .float()
                .slice_assign([0..n, 0..1], first)
        }
        Fidelity::Paper => (mass - sorted).lower_elem(mu).float(),
    };
    let gap = pair.distance();
    let head = (gap.clone().gather(1, order) * inside).sum_dim(1);
    let both = gap.sum_dim(1);
    let equal = both.clone().lower_equal_elem(0.0);
    (head / both).mask_fill(equal, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::normalize;

    /// Sorts all tokens and adds them up one by one.
    fn by_sorting(row: &RowView, mu: f64, fidelity: Fidelity) -> (f64, f64) {
        let mut order: Vec<usize> = (0..row.p.len()).collect();
        order.sort_by(|&a, &b| row.p[b].total_cmp(&row.p[a]));
        let (mut mass, mut head, mut tail) = (0.0, 0.0, 0.0);
        for (i, &token) in order.iter().enumerate() {
            let p = f64::from(row.p[token] * row.norms.p.scale);
            let gap = (p - f64::from(row.q[token] * row.norms.q.scale)).abs();
            let before = mass;
            mass += p;
            let inside = match fidelity {
                Fidelity::Official => i == 0 || mass < mu,
                Fidelity::Paper => before < mu,
            };
            *(if inside { &mut head } else { &mut tail }) += gap;
        }
        (head, tail)
    }

    #[test]
    fn the_head_is_that_of_the_sorted_row() {
        let noise =
            |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32 / (1 << 24) as f32;
        let rows: [(&str, &dyn Fn(u64) -> f32); 6] = [
            ("wide", &|i| -10.0 * noise(i)),
            ("very wide", &|i| -200.0 * noise(i)),
            ("narrow", &|i| -0.01 * noise(i)),
            ("steps", &|i| -(i as f32 * 8.0 / 5003.0).floor()),
            ("equal but for one", &|i| if i == 77 { 0.0 } else { -12.0 }),
            ("equal", &|_| 0.0),
        ];
        for (name, logit) in rows {
            let mut t: Vec<f32> = (0..5003).map(logit).collect();
            t[4000] = 0.0;
            let z: Vec<f32> = (0..5003).map(|i| noise(i + 9999).ln()).collect();
            let (mut p, mut q) = (vec![0.0; 5003], vec![0.0; 5003]);
            let norms = normalize(0, &z, &t, &mut p, &mut q).unwrap();
            let row = RowView {
                p: &p,
                q: &q,
                norms: &norms,
            };
            for mu in [0.0, 1e-4, 0.123, 0.5, 0.87, 0.9999, 1.0] {
                for fidelity in [Fidelity::Official, Fidelity::Paper] {
                    let (head, tail) = akl_gaps(&row, mu, fidelity);
                    // Only a token that crosses mu by rounding alone may fall on either side.
                    let [few, many] = [-1e-6, 1e-6].map(|by| by_sorting(&row, mu + by, fidelity));
                    let within = |x: f64, a: f64, b: f64| (a - 2e-6..b + 2e-6).contains(&x);
                    assert!(
                        within(head, few.0, many.0) && within(tail, many.1, few.1),
                        "{name} {mu} {fidelity:?}: {head} {tail}, {few:?} {many:?}"
                    );
                }
            }
        }
    }
}
