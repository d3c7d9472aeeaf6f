//! AlphaNet: the larger of two members of the alpha-beta family.

use rayon::prelude::*;

use super::passes::{dispatch_formulas, dispatch_gradient};
use super::softmax::{Norms, dispatch_exponentials};
use super::{Logit, Run, Scratch, formulas, normalize};
use crate::pointwise::{BothValues, Pointwise, SumOne};
use crate::{Error, Fidelity};

/// Official: the member with the larger sum over the rows given. Paper: the larger one of each row.
/// The first where both are equal. So all values come before the first gradient, which then needs only
/// the student's exponentials.
pub(super) fn alpha_net<L: Logit>(
    run: &Run<L>,
    alphas: [f64; 2],
    fidelity: Fidelity,
    student: &mut [L],
    value: &mut [f32],
) -> Result<(), Error> {
    let narrow = alphas.map(SumOne::<true>::new);
    let wide = alphas.map(SumOne::<false>::new);
    let [one, two] = narrow.map(|member| member.reach());
    let is_narrow = |norms: &Norms| {
        let unlikely = -norms.p.low.min(norms.q.low);
        unlikely - norms.peak.d.min(0.0) as f32 <= one.min(two)
    };
    let vocab = run.vocab.max(1);
    let rows: Vec<_> = student
        .par_chunks_exact(vocab)
        .enumerate()
        .map_init(
            || Scratch::new(vocab),
            |Scratch { z: zs, t: ts, p, q }, (index, z)| {
                let (z, t) = (L::read(z, zs), L::read(run.teacher(index), ts));
                let norms = normalize(index, z, t, p, q)?;
                let sums = if is_narrow(&norms) {
                    let both = BothValues(narrow).at(&norms.peak);
                    let [one, two] = dispatch_formulas(both, z, t, p, q, norms).both();
                    let scales = narrow.map(|member| member.scale());
                    [scales[0] * one, scales[1] * two]
                } else {
                    let both = BothValues(wide).at(&norms.peak);
                    dispatch_formulas(both, z, t, p, q, norms).both()
                };
                Ok((norms, sums))
            },
        )
        .collect();
    // the first bad row, whatever the order of work
    let rows = rows.into_iter().collect::<Result<Vec<_>, Error>>()?;
    let all: f64 = rows.iter().map(|(_, [one, two])| two - one).sum();
    student
        .par_chunks_exact_mut(vocab)
        .zip(run.teacher.par_chunks_exact(vocab))
        .zip(value)
        .zip(rows)
        .for_each_init(
            || Scratch::new(vocab),
            |Scratch { z: zs, t: ts, p, q }, (((z, t), value), row)| {
                let (norms, [one, two]) = row;
                let gain = match fidelity {
                    Fidelity::Official => all,
                    Fidelity::Paper => two - one,
                };
                let (member, sum) = if gain > 0.0 { (1, two) } else { (0, one) };
                *value = sum as f32;
                let (logits, t) = (L::read(z, zs), L::read(t, ts));
                dispatch_exponentials(logits, norms.q.shift, q);
                let sums = if is_narrow(&norms) {
                    formulas(narrow[member], logits, t, p, q, norms)
                } else {
                    dispatch_exponentials(t, norms.p.shift, p);
                    formulas(wide[member], logits, t, p, q, norms)
                };
                L::write(z, zs, |out| dispatch_gradient(out, p, q, norms, sums));
            },
        );
    Ok(())
}
