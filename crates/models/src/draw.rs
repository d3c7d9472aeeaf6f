//! One token from a row of logits.

use abkd_host::math::shifted_exp;
use abkd_host::{LANES, dispatch, fault};

use crate::generate::Decoding;

/// Entries whose weights are summed together.
const BLOCK: usize = 64 * LANES;

/// The token whose share of the cumulative probability contains `u`; `None` without a finite logit, or with NaN or
/// `+inf` among them.
pub(crate) fn draw(logits: &[f32], u: f64, decoding: &Decoding) -> Option<u32> {
    let max = largest(logits)?;
    let whole = decoding.top_k == 0 && decoding.top_p >= 1.0;
    if decoding.is_greedy() {
        let best = logits.iter().position(|&x| x == max)?;
        return Some(best as u32);
    }
    let temperature = decoding.temperature as f32;
    let scale = 1.0 / fault!("temperature twice", temperature, temperature * temperature);
    if whole {
        return Some(draw_from_all(logits, max, scale, u));
    }
    let mut ranked: Vec<(usize, f32)> = logits
        .iter()
        .map(|&x| shifted_exp(x * scale, max * scale))
        .enumerate()
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if decoding.top_k > 0 {
        ranked.truncate(decoding.top_k);
    }
    if decoding.top_p < 1.0 {
        let total: f64 = ranked.iter().map(|(_, w)| f64::from(*w)).sum();
        let mut mass = 0.0;
        let keep = ranked.iter().take_while(|(_, w)| {
            let open = mass < decoding.top_p * total;
            mass += f64::from(*w);
            open
        });
        let keep = keep.count().max(1);
        ranked.truncate(keep);
    }
    let total: f64 = ranked.iter().map(|(_, w)| f64::from(*w)).sum();
    Some(pick(ranked.into_iter(), u * total))
}

/// The first token at which the weights sum to more than `mass`; if rounding leaves none, the last token with a weight.
fn pick(weights: impl Iterator<Item = (usize, f32)>, mass: f64) -> u32 {
    let (mut left, mut last) = (mass, 0);
    for (token, w) in weights {
        left -= f64::from(w);
        if w > 0.0 {
            last = token;
        }
        if left < 0.0 {
            break;
        }
    }
    last as u32
}

/// The largest logit, if it is finite and none is NaN.
fn largest(logits: &[f32]) -> Option<f32> {
    let (max, good) = largest_of(logits);
    (good && max.is_finite()).then_some(max)
}

/// The blocks' sums find the block that holds the token; only that block is searched token by token.
fn draw_from_all(logits: &[f32], max: f32, scale: f32, u: f64) -> u32 {
    let mut sums = Vec::with_capacity(logits.len().div_ceil(BLOCK));
    block_sums(logits, max, scale, &mut sums);
    let mut left = u * sums.iter().sum::<f64>();
    let mut chosen = 0;
    for (block, sum) in sums.into_iter().enumerate() {
        if sum > 0.0 {
            chosen = block;
        }
        if left < sum {
            break;
        }
        left -= sum;
    }
    let start = chosen * BLOCK;
    let block = &logits[start..logits.len().min(start + BLOCK)];
    let mut weights = [0.0; BLOCK];
    weights_of(block, max, scale, &mut weights);
    start as u32 + pick(weights[..block.len()].iter().copied().enumerate(), left)
}

dispatch!(largest_of => largest_scan(logits: &[f32]) -> (f32, bool));
dispatch!(weights_of => weights_scan(logits: &[f32], max: f32, scale: f32, weights: &mut [f32]));
dispatch!(block_sums => block_sums_scan(logits: &[f32], max: f32, scale: f32, sums: &mut Vec<f64>));

#[inline(always)]
fn largest_scan(logits: &[f32]) -> (f32, bool) {
    let (mut max, mut bad) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
            bad[i] |= u32::from(chunk[i].is_nan());
        }
    }
    let max = max
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    let good = bad.iter().all(|&b| b == 0) && !rest.iter().any(|x| x.is_nan());
    (max, good)
}

#[inline(always)]
fn weights_scan(logits: &[f32], max: f32, scale: f32, weights: &mut [f32]) {
    for (weight, &x) in weights.iter_mut().zip(logits) {
        *weight = shifted_exp(x * scale, max * scale);
    }
}

#[inline(always)]
fn block_sums_scan(logits: &[f32], max: f32, scale: f32, sums: &mut Vec<f64>) {
    for block in logits.chunks(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let (chunks, rest) = block.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += shifted_exp(chunk[i] * scale, max * scale);
            }
        }
        for x in rest {
            lanes[0] += shifted_exp(x * scale, max * scale);
        }
        sums.push(lanes.iter().map(|&x| f64::from(x)).sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_divides_the_logits() {
        // At a temperature of 2, weights of 1 and 2.
        let decoding = Decoding {
            temperature: 2.0,
            ..Decoding::sampling()
        };
        let at = |u| super::draw(&[0.0, 4f32.ln()], u, &decoding).unwrap();
        assert_eq!([at(0.33), at(0.34)], [0, 1]);
        let ranked = Decoding {
            top_k: 2,
            ..decoding.clone()
        };
        // The likeliest token comes first.
        let at = |u| super::draw(&[0.0, 4f32.ln()], u, &ranked).unwrap();
        assert_eq!([at(0.66), at(0.67)], [1, 0]);
    }

    #[test]
    fn a_draw_follows_the_cumulative_probability() {
        let logits = [1.0f32.ln(), 2.0f32.ln(), 1.0f32.ln(), f32::NEG_INFINITY];
        let sample = |u| draw(&logits, u, &Decoding::sampling()).unwrap();
        assert_eq!(
            [0.0, 0.24, 0.26, 0.74, 0.76, 0.999].map(sample),
            [0, 0, 1, 1, 2, 2]
        );
        assert_eq!(draw(&logits, 0.9, &Decoding::greedy()), Some(1));
        assert_eq!(
            draw(&[f32::NAN, f32::NEG_INFINITY], 0.5, &Decoding::sampling()),
            None
        );
    }

    #[test]
    fn top_k_and_top_p_leave_the_likeliest() {
        let logits = [0.1f32.ln(), 0.5f32.ln(), 0.4f32.ln()];
        let with = |top_k, top_p, u| {
            draw(
                &logits,
                u,
                &Decoding {
                    top_k,
                    top_p,
                    ..Decoding::sampling()
                },
            )
        };
        assert_eq!(with(1, 1.0, 0.99), Some(1));
        assert_eq!(with(1, 0.1, 0.99), Some(1));
        assert_eq!(with(2, 1.0, 0.99), Some(2));
        assert_eq!(with(0, 0.5, 0.99), Some(1));
        assert_eq!(with(0, 0.6, 0.99), Some(2));
    }

    #[test]
    fn temperature_sharpens() {
        let logits = [0.0f32, 1.0];
        let at = |temperature| {
            draw(
                &logits,
                0.2,
                &Decoding {
                    temperature,
                    ..Decoding::sampling()
                },
            )
        };
        assert_eq!((at(1.0), at(0.1)), (Some(0), Some(1)));
    }

    #[test]
    fn over_many_blocks_it_is_the_inverse_of_the_cumulative_probability() {
        let logits: Vec<f32> = (0..5000)
            .map(|i| ((i * 7919) % 1000) as f32 * 0.005)
            .collect();
        let weights: Vec<f64> = logits.iter().map(|&x| f64::from(x).exp()).collect();
        let total: f64 = weights.iter().sum();
        for k in 0..2000 {
            let u = (f64::from(k) + 0.37) / 2000.0;
            let (mut sum, mut exact) = (0.0, 0);
            while sum + weights[exact] <= u * total {
                sum += weights[exact];
                exact += 1;
            }
            let drawn = draw(&logits, u, &Decoding::sampling()).unwrap() as usize;
            // At the border between two tokens rounding decides.
            let edge = (u * total - sum).min(sum + weights[exact] - u * total) / weights[exact];
            assert!(drawn == exact || edge < 0.05, "u {u}: {drawn}, not {exact}");
        }
    }

    #[test]
    fn what_is_not_a_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 16, 40] {
                let mut logits = vec![0.0; 41];
                logits[at] = bad;
                for decoding in [Decoding::greedy(), Decoding::sampling()] {
                    assert_eq!(draw(&logits, 0.5, &decoding), None, "{bad} at {at}");
                }
            }
        }
        assert_eq!(
            draw(&[f32::NEG_INFINITY; 3], 0.5, &Decoding::sampling()),
            None
        );
        assert_eq!(draw(&[], 0.5, &Decoding::sampling()), None);
    }
}
