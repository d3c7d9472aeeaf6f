//! AKL's weights: how far teacher and student are apart in the head and in the tail.

use abkd_host::LANES;

use super::RowView;
use super::passes::dispatch_gap_sum;
use crate::Fidelity;

/// Bins of the teacher's masses: 16 an octave, from the largest down by a factor of 2^16.
const BINS: usize = 16 * 16 + 1;

/// Bin of an exponential in (2^-16, 1]; the likeliest token is in bin 0.
#[inline(always)]
fn bin(e: f32) -> usize {
    ((1.0f32.to_bits() - e.to_bits()) >> 19) as usize
}

/// Sums of |p - q| over the head and the tail of the teacher's distribution.
///
/// The head is the likeliest tokens whose mass together stays below `mu`, the first one always
/// (official), or that reach it (paper). Tokens are sorted only within the bin in which `mu` is crossed.
pub(super) fn akl_gaps(row: &RowView, mu: f64, fidelity: Fidelity) -> (f64, f64) {
    let total = dispatch_gap_sum(row.p, row.q, row.scale_p, row.scale_q);
    let mass_of = |i: usize| f64::from(row.p[i] * row.scale_p);
    let gap_of = |i: usize| f64::from((row.p[i] * row.scale_p - row.q[i] * row.scale_q).abs());
    let smallest = f32::from_bits(1.0f32.to_bits() - ((BINS as u32 - 1) << 19));
    let (mut masses, mut gaps) = ([0.0f64; BINS], [0.0f64; BINS]);
    for (chunk, p) in row.p.chunks(LANES).enumerate() {
        // Most of a trained model's tokens are far below.
        if p.iter().fold(0.0, |a: f32, &b| if b > a { b } else { a }) <= smallest {
            continue;
        }
        for (i, &e) in p.iter().enumerate() {
            if e > smallest {
                let token = chunk * LANES + i;
                masses[bin(e)] += mass_of(token);
                gaps[bin(e)] += gap_of(token);
            }
        }
    }
    let (mut mass, mut head) = (0.0, 0.0);
    let mut crossed = 0;
    while crossed < BINS && mass + masses[crossed] < mu {
        mass += masses[crossed];
        head += gaps[crossed];
        crossed += 1;
    }
    // What is left to look at one by one: the bin that crosses, or all below the bins.
    let mut members: Vec<u32> = (0..row.p.len() as u32)
        .filter(|&i| {
            let e = row.p[i as usize];
            if crossed < BINS {
                e > smallest && bin(e) == crossed
            } else {
                e <= smallest
            }
        })
        .collect();
    members.sort_unstable_by(|a, b| {
        row.p[*b as usize]
            .total_cmp(&row.p[*a as usize])
            .then(a.cmp(b))
    });
    for (i, &token) in members.iter().enumerate() {
        let before = mass;
        mass += mass_of(token as usize);
        let inside = match fidelity {
            Fidelity::Official => (crossed == 0 && i == 0) || mass < mu,
            Fidelity::Paper => before < mu,
        };
        if !inside {
            break;
        }
        head += gap_of(token as usize);
    }
    (head, (total - head).max(0.0))
}
