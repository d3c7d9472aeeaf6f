//! The divergences of the paper's tables by name, with their parameters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A divergence D(p, q) of the student's next-token distribution q from the teacher's p, in nats.
///
/// Each is a sum over the vocabulary; `m` is a mixture of p and q. Sources: Wang et al. 2025 (ABKD), Ko et al. 2024
/// (DistiLLM: the skewed ones), Agarwal et al. 2024 (GKD: Jensen), Wu et al. 2024 (AKL), Wang et al. 2021 (AlphaNet),
/// Amara et al. 2022 (BDKD), Jung et al. 2025 (ToDi), Cichocki et al. 2011 (the alpha-beta family and its limits).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub enum Divergence {
    /// Forward KL: `sum p log(p/q)`. Official value: the cross-entropy `-sum p log q` (same gradient).
    ForwardKl,
    /// Reverse KL: `sum q log(q/p)`.
    ReverseKl,
    /// Weighted sum: `(1 - weight) FKL + weight RKL`. Official: the first half's value is a cross-entropy.
    Wsd {
        /// Share of the reverse half, in `[0, 1]`.
        weight: f64,
    },
    /// Bidirectional: `w_t FKL + w_s RKL`; the side with the larger entropy (teacher: `w_t`, student: `w_s`) weighs more
    /// than 1, constant for the gradient. Paper: 2. Official: 3, entropies with `log(p + 1e-9)`, first half a cross-entropy.
    Bdkd,
    /// Generalized Jensen: `lambda KL(q, m) + (1 - lambda) KL(p, m)`, `m = (1 - lambda) p + lambda q`.
    Jensen {
        /// Weight of q in the mixture, in `[0, 1]`.
        lambda: f64,
    },
    /// Adaptive KL: `g_h FKL + g_t RKL`, where g is the share of the gap `sum |p - q|` that lies in the head (the teacher's
    /// most likely tokens up to the mass mu) and in the tail; constant for the gradient, 0.5 each where p = q. Official: the
    /// token that crosses mu belongs to the tail, the first token always to the head. Paper: it belongs to the head.
    Akl {
        /// Mass of the head, in `[0, 1]`.
        mu: f64,
    },
    /// The larger of `AB(a, 1 - a)` and `AB(b, 1 - b)`. Official: by their means over the rows of one call. Paper: row by row.
    AlphaNet {
        /// The smaller alpha; not 1, nor is `b`.
        a: f64,
        /// The larger alpha.
        b: f64,
    },
    /// The alpha-beta divergence `-1/(alpha beta) sum [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) -
    /// beta/(alpha+beta) q^(alpha+beta)]`, continued to alpha = 0, beta = 0, alpha + beta = 0. Official: the limits carry
    /// the factor 1/alpha (1/beta) where continuity asks for its square.
    AlphaBeta {
        /// Exponent of p.
        alpha: f64,
        /// Exponent of q.
        beta: f64,
    },
    /// Skewed forward KL: `KL(p, lambda p + (1 - lambda) q)`. Official value: the cross-entropy `-sum p log m`.
    SkewForwardKl {
        /// Weight of p in the mixture, in `[0, 1]`.
        lambda: f64,
    },
    /// Skewed reverse KL: `KL(q, (1 - lambda) p + lambda q)`.
    SkewReverseKl {
        /// Weight of q in the mixture, in `[0, 1]`.
        lambda: f64,
    },
    /// Total variation: `0.5 sum |p - q|`, with gradient 0 where p = q.
    TotalVariation,
    /// ToDi: `sum w p log(p/q) + (1 - w) q log(q/p)`, where each entry's `w = sigma(log(p/q)) = p/(p + q)` is constant for
    /// the gradient.
    ToDi,
}

/// A divergence as files hold it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    id: String,
    #[serde(default)]
    params: BTreeMap<String, f64>,
}

impl From<Divergence> for Parts {
    fn from(divergence: Divergence) -> Self {
        let params = divergence.params().into_iter();
        Self {
            id: divergence.id().into(),
            params: params.map(|(name, value)| (name.into(), value)).collect(),
        }
    }
}

impl TryFrom<Parts> for Divergence {
    type Error = Error;
    fn try_from(parts: Parts) -> Result<Self, Error> {
        Self::from_parts(&parts.id, &parts.params)
    }
}

/// Which of two readings a computation follows where the published code departs from the formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fidelity {
    /// The formula as published, continuous in its parameters.
    Paper,
    /// What the released code computes.
    Official,
}

impl Fidelity {
    /// The name in settings: "paper" or "official".
    pub fn id(self) -> &'static str {
        match self {
            Fidelity::Paper => "paper",
            Fidelity::Official => "official",
        }
    }
}

impl std::str::FromStr for Fidelity {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self, Error> {
        match s {
            "paper" => Ok(Fidelity::Paper),
            "official" => Ok(Fidelity::Official),
            _ => Err(Error::UnknownFidelity(s.to_string())),
        }
    }
}

impl Divergence {
    /// Every id that [`Divergence::from_parts`] knows, in the order of the paper's tables.
    pub const IDS: [&'static str; 12] = [
        "fkld", "rkld", "wsd", "bdkd", "jensen", "akl", "alphanet", "ab", "skew_fkl", "skew_rkl",
        "tvd", "todi",
    ];

    /// The divergence of this id with the paper's default parameters.
    fn with_defaults(id: &str) -> Option<Self> {
        Some(match id {
            "fkld" => Self::ForwardKl,
            "rkld" => Self::ReverseKl,
            "wsd" => Self::Wsd { weight: 0.5 },
            "bdkd" => Self::Bdkd,
            "jensen" => Self::Jensen { lambda: 0.1 },
            "akl" => Self::Akl { mu: 0.5 },
            "alphanet" => Self::AlphaNet { a: 0.2, b: 0.9 },
            "ab" => Self::AlphaBeta {
                alpha: 0.2,
                beta: 0.7,
            },
            "skew_fkl" => Self::SkewForwardKl { lambda: 0.1 },
            "skew_rkl" => Self::SkewReverseKl { lambda: 0.1 },
            "tvd" => Self::TotalVariation,
            "todi" => Self::ToDi,
            _ => return None,
        })
    }

    /// The divergence of this id; parameters that are not given have the paper's defaults: weight 0.5, lambda 0.1, mu 0.5,
    /// a 0.2, b 0.9, alpha 0.2, beta 0.7.
    ///
    /// # Errors
    /// An unknown id (with the nearest known one), a parameter that the divergence has not, a value outside its range.
    pub fn from_parts(id: &str, params: &BTreeMap<String, f64>) -> Result<Self, Error> {
        let mut divergence = Self::with_defaults(id).ok_or_else(|| Error::UnknownLoss {
            id: id.to_string(),
            nearest: nearest(id),
            known: Self::IDS.join(", "),
        })?;
        for (name, value) in params {
            let known = divergence.params();
            match divergence.param_mut(name) {
                Some(slot) => *slot = *value,
                None => {
                    let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
                    return Err(Error::UnknownParameter {
                        id: divergence.id(),
                        name: name.clone(),
                        known: if names.is_empty() {
                            "none".to_string()
                        } else {
                            names.join(", ")
                        },
                    });
                }
            }
        }
        divergence.validate()?;
        Ok(divergence)
    }

    fn param_mut(&mut self, name: &str) -> Option<&mut f64> {
        match (self, name) {
            (Self::Wsd { weight }, "weight") => Some(weight),
            (Self::Jensen { lambda }, "lambda") => Some(lambda),
            (Self::SkewForwardKl { lambda }, "lambda") => Some(lambda),
            (Self::SkewReverseKl { lambda }, "lambda") => Some(lambda),
            (Self::Akl { mu }, "mu") => Some(mu),
            (Self::AlphaNet { a, .. }, "a") => Some(a),
            (Self::AlphaNet { b, .. }, "b") => Some(b),
            (Self::AlphaBeta { alpha, .. }, "alpha") => Some(alpha),
            (Self::AlphaBeta { beta, .. }, "beta") => Some(beta),
            _ => None,
        }
    }

    /// The parameters by name, in the order of the formula.
    pub fn params(&self) -> Vec<(&'static str, f64)> {
        match *self {
            Self::Wsd { weight } => vec![("weight", weight)],
            Self::Jensen { lambda }
            | Self::SkewForwardKl { lambda }
            | Self::SkewReverseKl { lambda } => vec![("lambda", lambda)],
            Self::Akl { mu } => vec![("mu", mu)],
            Self::AlphaNet { a, b } => vec![("a", a), ("b", b)],
            Self::AlphaBeta { alpha, beta } => vec![("alpha", alpha), ("beta", beta)],
            Self::ForwardKl | Self::ReverseKl | Self::Bdkd | Self::TotalVariation | Self::ToDi => {
                vec![]
            }
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// weight, lambda and mu must lie in `[0, 1]`, all others be finite and at most 1000 in size.
    pub fn validate(&self) -> Result<(), Error> {
        for (name, value) in self.params() {
            let (good, range) = match name {
                "weight" | "lambda" | "mu" => ((0.0..=1.0).contains(&value), "a number in [0, 1]"),
                // The member AB(1, 0) would be divided by 0.
                "a" | "b" => (
                    value.abs() <= 1e3 && value as f32 != 1.0,
                    "a finite number of at most 1000 in size, and not 1",
                ),
                // Beyond this, powers of probabilities mean nothing in single precision.
                _ => (
                    value.abs() <= 1e3,
                    "a finite number of at most 1000 in size",
                ),
            };
            if !good {
                return Err(Error::Parameter {
                    id: self.id(),
                    name,
                    value,
                    range,
                });
            }
        }
        Ok(())
    }

    /// The name in settings and result files.
    pub fn id(&self) -> &'static str {
        self.names().0
    }

    /// The name in the paper's tables.
    pub fn label(&self) -> &'static str {
        self.names().1
    }

    /// The formula (p = teacher, q = student, m = mixture), for help texts.
    pub fn formula(&self) -> &'static str {
        self.names().2
    }

    fn names(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::ForwardKl => ("fkld", "FKLD", "sum p log(p/q)"),
            Self::ReverseKl => ("rkld", "RKLD", "sum q log(q/p)"),
            Self::Wsd { .. } => ("wsd", "WSD", "(1 - weight) KL(p,q) + weight KL(q,p)"),
            Self::Bdkd => (
                "bdkd",
                "BDKD",
                "w_t KL(p,q) + w_s KL(q,p), the side of larger entropy weighs more",
            ),
            Self::Jensen { .. } => (
                "jensen",
                "Jensen's KL",
                "lambda KL(q,m) + (1 - lambda) KL(p,m), m = (1 - lambda) p + lambda q",
            ),
            Self::Akl { .. } => (
                "akl",
                "AKL",
                "g_head KL(p,q) + g_tail KL(q,p), g = share of sum |p - q| in the teacher's head and tail",
            ),
            Self::AlphaNet { .. } => ("alphanet", "AlphaNet", "max of AB(a, 1-a) and AB(b, 1-b)"),
            Self::AlphaBeta { .. } => (
                "ab",
                "ABKD",
                "-1/(alpha beta) sum [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)]",
            ),
            Self::SkewForwardKl { .. } => (
                "skew_fkl",
                "Skew KL",
                "KL(p,m), m = lambda p + (1 - lambda) q",
            ),
            Self::SkewReverseKl { .. } => (
                "skew_rkl",
                "Skew RKL",
                "KL(q,m), m = (1 - lambda) p + lambda q",
            ),
            Self::TotalVariation => ("tvd", "TVD", "0.5 sum |p - q|"),
            Self::ToDi => (
                "todi",
                "ToDi",
                "sum w p log(p/q) + (1 - w) q log(q/p), w = p/(p + q) of each entry",
            ),
        }
    }

    /// The reading that a comparison with the paper's tables should use: the formula for the alpha-beta family and the
    /// plain KLs (whose official value differs by the teacher's entropy, or by the factor of a limit), the released code
    /// where it alone defines the experiment (BDKD, Jensen, AKL, AlphaNet).
    pub fn default_fidelity(&self) -> Fidelity {
        match self {
            Self::Bdkd | Self::Jensen { .. } | Self::Akl { .. } | Self::AlphaNet { .. } => {
                Fidelity::Official
            }
            Self::ForwardKl
            | Self::ReverseKl
            | Self::Wsd { .. }
            | Self::AlphaBeta { .. }
            | Self::SkewForwardKl { .. }
            | Self::SkewReverseKl { .. }
            | Self::TotalVariation
            | Self::ToDi => Fidelity::Paper,
        }
    }
}

fn nearest(id: &str) -> &'static str {
    let lower = id.to_lowercase();
    let score = |known: &str| strsim::jaro_winkler(&lower, known);
    Divergence::IDS
        .into_iter()
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        .unwrap_or("ab")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, params: &[(&str, f64)]) -> Result<Divergence, Error> {
        let params = params.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        Divergence::from_parts(id, &params)
    }

    #[test]
    fn every_id_names_itself_and_takes_its_own_parameters() {
        for id in Divergence::IDS {
            let divergence = parts(id, &[]).unwrap();
            assert_eq!(divergence.id(), id);
            let mut given = divergence.params();
            for (_, value) in &mut given {
                *value = 0.25;
            }
            assert_eq!(parts(id, &given).unwrap().params(), given);
        }
    }

    #[test]
    fn files_hold_id_and_parameters() {
        for id in Divergence::IDS {
            let divergence = parts(id, &[]).unwrap();
            let text = serde_json::to_string(&divergence).unwrap();
            assert_eq!(
                serde_json::from_str::<Divergence>(&text).unwrap(),
                divergence
            );
        }
        let error = serde_json::from_str::<Divergence>(r#"{"id":"ab","params":{"alfa":1.0}}"#);
        assert!(error.unwrap_err().to_string().contains("alfa"));
    }

    #[test]
    fn errors_name_what_is_wrong_and_what_would_be_right() {
        let text = parts("fkl", &[]).unwrap_err().to_string();
        assert!(
            text.contains("`fkl`") && text.contains("mean `fkld`") && text.contains("tvd"),
            "{text}"
        );
        let text = parts("ab", &[("gamma", 1.0)]).unwrap_err().to_string();
        assert_eq!(
            text,
            "loss `ab` has no parameter `gamma`; it has alpha, beta"
        );
        let text = parts("tvd", &[("mu", 1.0)]).unwrap_err().to_string();
        assert!(text.ends_with("it has none"), "{text}");
        let text = parts("jensen", &[("lambda", 1.5)]).unwrap_err().to_string();
        assert_eq!(
            text,
            "loss `jensen`: lambda = 1.5 is not a number in [0, 1]"
        );
        for bad in [f64::NAN, f64::INFINITY, -1e9] {
            assert!(parts("ab", &[("alpha", bad)]).is_err());
            assert!(parts("akl", &[("mu", bad)]).is_err());
        }
        assert!(parts("alphanet", &[("b", 1.0)]).is_err());
        assert!(
            "Paper"
                .parse::<Fidelity>()
                .unwrap_err()
                .to_string()
                .contains("Paper")
        );
    }
}
