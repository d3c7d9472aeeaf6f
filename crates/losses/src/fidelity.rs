//! Which reading of a divergence is computed.

use serde::{Deserialize, Serialize};

use crate::Error;

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

    /// Weight of `sum p log p` in a forward KL: the released code leaves it out, which makes it a cross-entropy.
    pub(crate) fn entropy(self) -> f64 {
        match self {
            Fidelity::Paper => 1.0,
            Fidelity::Official => 0.0,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_name_is_an_error_that_says_it() {
        let error = "Paper".parse::<Fidelity>().unwrap_err().to_string();
        assert!(error.contains("Paper"), "{error}");
    }
}
