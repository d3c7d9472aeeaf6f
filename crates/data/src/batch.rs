use abkd_host::fault;

use crate::Sequence;
use crate::rng::Rng;

/// Packed sequences, without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Example of each sequence.
    pub examples: Vec<usize>,
    /// Inputs `[N]`: the sequences one after the other, each without its last token.
    pub input_ids: Vec<u32>,
    /// Number of inputs of each sequence; the sum is N.
    pub lengths: Vec<usize>,
    /// Positions in `input_ids` that predict a response token, ascending, each with that token.
    pub targets: Vec<(usize, u32)>,
}

/// Packs sequences into a batch.
pub fn collate(sequences: &[&Sequence]) -> Batch {
    let lengths: Vec<usize> = sequences.iter().map(|s| s.tokens.len() - 1).collect();
    let mut input_ids = Vec::with_capacity(lengths.iter().sum());
    let mut targets = Vec::new();
    for (s, length) in sequences.iter().zip(&lengths) {
        let start = input_ids.len();
        input_ids.extend(&s.tokens[..*length]);
        targets.extend((s.prompt_len..s.tokens.len()).map(|t| {
            let at = fault!("targets at their own places", start + t - 1, start + t);
            (at, s.tokens[t])
        }));
    }
    Batch {
        examples: sequences.iter().map(|s| s.example).collect(),
        input_ids,
        lengths,
        targets,
    }
}

impl Batch {
    /// The first position of each sequence, then N.
    fn starts(&self) -> impl Iterator<Item = usize> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        std::iter::once(0).chain(ends)
    }

    /// Targets of each sequence.
    pub fn targets_by_sequence(&self) -> impl Iterator<Item = &[(usize, u32)]> {
        let mut rest = &self.targets[..];
        self.starts().skip(1).map(move |end| {
            let (these, others) = rest.split_at(rest.partition_point(|(at, _)| *at < end));
            rest = others;
            these
        })
    }

    /// The example that a target belongs to.
    ///
    /// # Panics
    ///
    /// When there is no such target.
    pub fn example_of(&self, target: usize) -> usize {
        let (at, _) = self.targets[target];
        let sequence = self.starts().skip(1).take_while(|end| *end <= at).count();
        self.examples[sequence]
    }

    /// Micro-batches of at most `size` sequences, each with the range of `targets` that it holds.
    ///
    /// # Panics
    ///
    /// When `size` is 0.
    pub fn split(&self, size: usize) -> Vec<(Self, std::ops::Range<usize>)> {
        let starts: Vec<usize> = self.starts().collect();
        let mut first_target = 0;
        (0..self.lengths.len())
            .step_by(size)
            .map(|first| {
                let last = (first + size).min(self.lengths.len());
                let tokens = starts[first]..starts[last];
                let targets: Vec<(usize, u32)> = self.targets[first_target..]
                    .iter()
                    .take_while(|(at, _)| *at < tokens.end)
                    .map(|(at, label)| (at - tokens.start, *label))
                    .collect();
                let range = first_target..first_target + targets.len();
                first_target = range.end;
                let part = Self {
                    examples: self.examples[first..last].to_vec(),
                    input_ids: self.input_ids[tokens].to_vec(),
                    lengths: self.lengths[first..last].to_vec(),
                    targets,
                };
                (part, range)
            })
            .collect()
    }
}

/// The full batches of an epoch as indices into `sequences` sequences: a uniform shuffle that depends on (seed, epoch)
/// alone. Sequence lengths must not decide which sequences share an update: its mean over tokens gives each token a weight
/// that depends on the other sequences. A last, smaller batch is dropped unless it is the only one.
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
        let batch = collate(&[&a, &b]);
        assert_eq!(batch.input_ids, [1, 2, 3, 5]);
        assert_eq!(batch.lengths, [3, 1]);
        assert_eq!(batch.targets, [(1, 3), (2, 4), (3, 6)]);
        assert!(collate(&[]).lengths.is_empty());
    }

    proptest! {
        #[test]
        fn parts_are_the_batches_of_their_sequences(
            lengths in prop::collection::vec((1usize..5, 1usize..6), 1..9), size in 1usize..10,
        ) {
            let sequences: Vec<Sequence> = lengths
                .iter()
                .enumerate()
                .map(|(example, &(prompt_len, response))| Sequence {
                    example,
                    tokens: (0..prompt_len + response).map(|t| (10 * example + t) as u32).collect(),
                    prompt_len,
                })
                .collect();
            let all: Vec<&Sequence> = sequences.iter().collect();
            let whole = collate(&all);
            for (i, targets) in whole.targets_by_sequence().enumerate() {
                prop_assert_eq!(targets.len(), lengths[i].1);
                for (at, label) in targets {
                    prop_assert_eq!(whole.input_ids[*at] + 1, *label);
                    prop_assert_eq!(whole.input_ids[*at] as usize / 10, i);
                }
            }
            let parts = whole.split(size);
            let mut first = 0;
            for (chunk, (part, range)) in all.chunks(size).zip(&parts) {
                prop_assert_eq!(part, &collate(chunk));
                prop_assert_eq!(range.clone(), first..first + part.targets.len());
                for target in 0..part.targets.len() {
                    prop_assert_eq!(part.example_of(target), whole.example_of(first + target));
                }
                first = range.end;
            }
            prop_assert_eq!(first, whole.targets.len());
        }
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

    /// Over many seeds all pairs of sequences share a batch equally often.
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
        // 3 of the 11 other sequences are in the batch; limit of 5 standard deviations.
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
