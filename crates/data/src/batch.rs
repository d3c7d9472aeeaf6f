use crate::Sequence;
use crate::rng::Rng;

/// Sequences side by side, right-padded to the longest of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Examples of the rows.
    pub examples: Vec<usize>,
    /// B: number of sequences.
    pub rows: usize,
    /// T: longest input.
    pub width: usize,
    /// Inputs `[B, T]`, row by row: each sequence but its last token.
    pub input_ids: Vec<u32>,
    /// Inputs of each row without padding.
    pub lengths: Vec<usize>,
    /// Positions that predict a response token (flat index into `[B, T]`) and that token.
    pub targets: Vec<(usize, u32)>,
}

/// Lays sequences side by side.
pub fn batch(sequences: &[&Sequence], pad: u32) -> Batch {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len() - 1).collect();
    let width = lengths.iter().copied().max().unwrap_or(0);
    let mut input_ids = vec![pad; sequences.len() * width];
    let mut targets = Vec::new();
    for (row, s) in sequences.iter().enumerate() {
        let start = row * width;
        input_ids[start..start + lengths[row]].copy_from_slice(&s.tokens[..lengths[row]]);
        targets.extend((s.prompt_len..s.tokens.len()).map(|t| (start + t - 1, s.tokens[t])));
    }
    Batch {
        examples: sequences.iter().map(|s| s.example).collect(),
        rows: sequences.len(),
        width,
        input_ids,
        lengths,
        targets,
    }
}

impl Batch {
    /// Parts of at most `rows` rows, each padded to its own longest row, with the range of `targets`
    /// that it holds.
    ///
    /// # Panics
    ///
    /// When `rows` is 0.
    pub fn split(&self, rows: usize) -> Vec<(Self, std::ops::Range<usize>)> {
        let mut parts = Vec::new();
        let mut first_target = 0;
        for first in (0..self.rows).step_by(rows) {
            let end = (first + rows).min(self.rows);
            let lengths = self.lengths[first..end].to_vec();
            let width = lengths.iter().copied().max().unwrap_or(0);
            let mut input_ids = Vec::with_capacity(width * lengths.len());
            for row in first..end {
                let start = row * self.width;
                input_ids.extend(&self.input_ids[start..start + width]);
            }
            let targets: Vec<(usize, u32)> = self.targets[first_target..]
                .iter()
                .take_while(|(at, _)| at / self.width < end)
                .map(|(at, label)| {
                    let (row, column) = (at / self.width - first, at % self.width);
                    (row * width + column, *label)
                })
                .collect();
            let range = first_target..first_target + targets.len();
            first_target = range.end;
            let part = Self {
                examples: self.examples[first..end].to_vec(),
                rows: end - first,
                width,
                input_ids,
                lengths,
                targets,
            };
            parts.push((part, range));
        }
        parts
    }
}

/// The whole batches of an epoch as indices into `sequences` sequences: a uniform shuffle that depends on (seed, epoch)
/// alone. Nothing else decides which sequences share an update: the mean over the tokens of an update gives each token a
/// weight that depends on what the others are. What does not fill a batch is left out, unless there is nothing else.
pub fn batches_of_epoch(
    sequences: usize,
    batch_size: usize,
    seed: u64,
    epoch: u64,
) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sequences).collect();
    Rng::new(&[seed, epoch]).shuffle(&mut order);
    if order.len() >= batch_size {
        order.truncate(order.len() / batch_size * batch_size);
    }
    order.chunks(batch_size).map(<[usize]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sequence(tokens: &[u32], prompt_len: usize) -> Sequence {
        Sequence {
            example: 0,
            tokens: tokens.to_vec(),
            prompt_len,
        }
    }

    #[test]
    fn inputs_and_targets_are_shifted_by_one() {
        let (a, b) = (sequence(&[1, 2, 3, 4], 2), sequence(&[5, 6], 1));
        let batch = batch(&[&a, &b], 0);
        assert_eq!((batch.rows, batch.width), (2, 3));
        assert_eq!(batch.input_ids, [1, 2, 3, 5, 0, 0]);
        assert_eq!(batch.lengths, [3, 1]);
        assert_eq!(batch.targets, [(1, 3), (2, 4), (3, 6)]);
    }

    #[test]
    fn parts_hold_the_same_targets_and_less_padding() {
        let (a, b) = (sequence(&[1, 2, 3, 4], 2), sequence(&[5, 6], 1));
        let whole = batch(&[&a, &b], 0);
        let parts = whole.split(1);
        assert_eq!(parts[0], (batch(&[&a], 0), 0..2));
        assert_eq!(parts[1], (batch(&[&b], 0), 2..3));
        assert_eq!(whole.split(5), [(whole.clone(), 0..3)]);
        // a part of several rows, all of them shorter than the whole's longest
        let (c, d) = (sequence(&[7, 8, 9], 1), sequence(&[4, 3, 2], 2));
        let parts = batch(&[&a, &b, &c, &d], 0).split(2);
        assert_eq!(parts[0], (whole, 0..3));
        assert_eq!(parts[1], (batch(&[&c, &d], 0), 3..6));
    }

    proptest! {
        #[test]
        fn an_epoch_is_a_choice_without_repetition(n in 1usize..200, size in 1usize..20, seed: u64, epoch in 0u64..9) {
            let mut all = batches_of_epoch(n, size, seed, epoch).concat();
            all.sort_unstable();
            prop_assert_eq!(all.len(), if n < size { n } else { n / size * size });
            prop_assert!(all.windows(2).all(|w| w[0] < w[1]));
        }
    }

    /// Over many seeds each pair of sequences shares a batch as often as any other.
    #[test]
    fn any_two_sequences_share_a_batch_equally_often() {
        let (n, size, seeds) = (12, 4, 20_000u32);
        let mut together = vec![0u32; n * n];
        for seed in 0..seeds {
            for batch in batches_of_epoch(n, size, u64::from(seed), 0) {
                for &a in &batch {
                    for &b in batch.iter().filter(|&&b| b > a) {
                        together[a * n + b] += 1;
                    }
                }
            }
        }
        // A partner is any of 11 others, 3 of them in the batch; 5 standard deviations.
        let expected = f64::from(seeds) * 3.0 / 11.0;
        let limit = 5.0 * (expected * 8.0 / 11.0).sqrt();
        for a in 0..n {
            for b in a + 1..n {
                let count = f64::from(together[a * n + b]);
                assert!((count - expected).abs() < limit, "{a} {b}: {count}");
            }
        }
    }
}
