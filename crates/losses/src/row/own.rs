//! A divergence of the caller's, from two functions.

use super::{Logit, Run};
use crate::pointwise::{self, Peak, Pointwise};
use crate::{Error, Logits};

/// One token's probabilities and their logarithms.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Teacher.
    pub p: f32,
    /// Student.
    pub q: f32,
    /// log p
    pub lp: f32,
    /// log q
    pub lq: f32,
}

/// Values of the divergence `sum f(p, q)` of the caller's, and its gradient in place of the student's logits.
///
/// The gradient in a logit is `q (g - sum q g)` with the slope `g = df/dq`. It is computed as `h - q sum h` with
/// `h = q (g - g at the peak)`; the peak is the student's likeliest token. Where g hardly differs from its value at the peak, h
/// loses digits; the divergences of this crate have other formulas for such rows.
///
/// # Shapes
///
/// - `f`, `slope`: of an entry; called in parallel, and only for entries whose logits are finite in both models
/// - `logits`, `value`: as in [`divergence`](super::divergence)
///
/// # Errors
///
/// A row without a finite logit, or with NaN or `+inf`.
///
/// # Panics
///
/// When the lengths do not fit.
pub fn own<L: Logit>(
    f: impl Fn(Entry) -> f32 + Sync,
    slope: impl Fn(Entry) -> f32 + Sync,
    logits: Logits<&mut [L], &[L]>,
    vocab: usize,
    value: &mut [f32],
) -> Result<(), Error> {
    let Logits { student, teacher } = logits;
    assert_eq!(student.len(), teacher.len());
    assert_eq!(student.len(), value.len() * vocab);
    let own = Own {
        f: &f,
        slope: &slope,
        peak: 0.0,
    };
    Run { teacher, vocab }.rows(student, value, |_| own)
}

struct Own<'a, F, G> {
    f: &'a F,
    slope: &'a G,
    /// The slope at the peak.
    peak: f32,
}

// Not derived: derived implementations would require `F` and `G` to be `Clone` and `Copy`.
impl<F, G> Clone for Own<'_, F, G> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F, G> Copy for Own<'_, F, G> {}

impl<F: Fn(Entry) -> f32 + Sync, G: Fn(Entry) -> f32 + Sync> Pointwise for Own<'_, F, G> {
    const HAS_NEAR: bool = false;

    fn at(self, peak: &Peak) -> Self {
        let peak = (self.slope)(Entry::from(peak.entry));
        Self { peak, ..self }
    }

    fn eval<const NEAR: bool>(&self, entry: pointwise::Entry) -> (f32, f32) {
        let entry = Entry::from(entry);
        if entry.lp == f32::NEG_INFINITY || entry.lq == f32::NEG_INFINITY {
            return (0.0, 0.0); // left out
        }
        ((self.f)(entry), entry.q * ((self.slope)(entry) - self.peak))
    }

    fn left_out(&self) -> f32 {
        -self.peak
    }
}

impl From<pointwise::Entry> for Entry {
    fn from(entry: pointwise::Entry) -> Self {
        let pointwise::Entry { p, q, lp, lq, .. } = entry;
        Self { p, q, lp, lq }
    }
}
