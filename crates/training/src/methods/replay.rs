//! The replay buffer of DistiLLM and of the released GKD code.

use std::collections::VecDeque;

use abkd_data::rng::Rng;
use serde::{Deserialize, Serialize};

/// The latest `capacity` sequences that were pushed.
///
/// The released code has one buffer of 1,000 per GPU, a run only this one: multiply its capacity by the number of GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayBuffer<T> {
    capacity: usize,
    /// Oldest first.
    held: VecDeque<T>,
}

impl<T: Clone> ReplayBuffer<T> {
    /// An empty buffer.
    ///
    /// # Panics
    ///
    /// When `capacity` is 0.
    pub fn new(capacity: usize) -> Self {
        assert!(capacity > 0, "a buffer holds something");
        Self {
            capacity,
            held: VecDeque::new(),
        }
    }

    /// Number of sequences in the buffer.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether a push drops the oldest sequence.
    pub fn is_full(&self) -> bool {
        self.held.len() >= self.capacity
    }

    /// The sequences in the buffer, oldest first.
    pub fn held(&self) -> impl Iterator<Item = &T> {
        self.held.iter()
    }

    /// Adds sequences one by one. A full buffer drops its oldest sequence first, even one of the same push.
    pub fn push(&mut self, sequences: impl IntoIterator<Item = T>) {
        for sequence in sequences {
            if self.is_full() {
                self.held.pop_front();
            }
            self.held.push_back(sequence);
        }
    }

    /// Draws `n` different sequences, uniformly and in random order; `None` when it holds fewer. The buffer keeps them all.
    pub fn draw(&self, n: usize, rng: &mut Rng) -> Option<Vec<T>> {
        if n > self.held.len() {
            return None;
        }
        let mut order: Vec<usize> = (0..self.held.len()).collect();
        rng.shuffle(&mut order);
        Some(order[..n].iter().map(|&i| self.held[i].clone()).collect())
    }
}

/// Limit of a buffer's capacity: gigabytes of sequences.
const LARGEST: usize = 10_000_000;

/// Checks a capacity; an error says what is wrong.
pub(super) fn check_capacity(capacity: usize) -> Result<(), String> {
    if capacity == 0 {
        return Err("capacity = 0: the replay buffer must hold something".into());
    }
    if capacity > LARGEST {
        return Err(format!(
            "capacity = {capacity}: the replay buffer is held in memory; it must be {LARGEST} or less"
        ));
    }
    Ok(())
}

/// Refuses a buffer from which a batch could never be drawn.
pub(super) fn check_batch(capacity: usize, batch_size: usize) -> Result<(), String> {
    if capacity < batch_size {
        return Err(format!(
            "capacity = {capacity}: batches of batch_size = {batch_size} are drawn from the replay buffer; it must hold that many or more"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_and_a_draw_repeats_nothing() {
        let mut buffer = ReplayBuffer::new(3);
        assert_eq!(buffer.draw(1, &mut Rng::new(&[1])), None);
        buffer.push([1, 2]);
        assert!(!buffer.is_full());
        buffer.push([3, 4, 5]);
        assert!(buffer.is_full());
        let mut drawn = buffer.draw(3, &mut Rng::new(&[1])).unwrap();
        drawn.sort_unstable();
        assert_eq!(drawn, [3, 4, 5]);
        assert_eq!(buffer.draw(2, &mut Rng::new(&[1])).unwrap().len(), 2);
        assert_eq!(buffer.draw(4, &mut Rng::new(&[1])), None);
        assert_eq!(buffer.len(), 3);
    }

    #[test]
    fn every_one_held_is_drawn_first_equally_often() {
        let mut buffer = ReplayBuffer::new(5);
        buffer.push(0..5);
        let mut counts = [0u32; 5];
        for seed in 0..5000 {
            counts[buffer.draw(2, &mut Rng::new(&[seed])).unwrap()[0]] += 1;
        }
        // 1,000 expected, standard deviation 28
        assert!(counts.iter().all(|c| c.abs_diff(1000) < 150), "{counts:?}");
    }
}
