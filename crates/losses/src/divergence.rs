//! A divergence as a value: which one, and its parameters.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::divergences::{ALL, Definition, Form, Parameter, Params};
use crate::view::{self, View};
use crate::{Error, Fidelity};

/// A divergence D(p, q) of the student's next-token distribution q from the teacher's p, in nats.
///
/// Each is computed from sums over the vocabulary; `m` is a mixture of p and q. [`Divergence::all`] lists all of them with
/// the paper's parameters. Each has a constructor here, whose documentation gives its formula and source. A constructor takes
/// any numbers: [`validate`](Divergence::validate) checks them.
///
/// As text, a divergence is its id, and its parameters by position or by name; those left out have the paper's values:
///
/// ```
/// use abkd_losses::Divergence;
///
/// let abkd = Divergence::alpha_beta(0.2, 0.7);
/// assert_eq!("ab:0.2,0.7".parse::<Divergence>()?, abkd);
/// assert_eq!("ab:alpha=0.2,beta=0.7".parse::<Divergence>()?, abkd);
/// assert_eq!("fkld".parse::<Divergence>()?, Divergence::forward_kl());
/// assert_eq!(abkd.to_string(), "ab:0.2,0.7");
/// # Ok::<(), abkd_losses::Error>(())
/// ```
///
/// Files hold `{"id": "ab", "params": {"alpha": 0.2, "beta": 0.7}}`.
///
/// Every divergence has five more parameters, by name only:
///
/// - `tau` = 1: the temperature by which both models' logits are divided;
/// - `squared` = 0: if 1, value and gradient are multiplied by its square, as in Hinton et al. (2015): `fkld:tau=2,squared=1`;
/// - `top` = 0: if k, the teacher's k likeliest tokens are classes of their own and all others are one, so that the
///   divergence is one of k + 1 classes and bounds that of the tokens from below: `fkld:top=64`;
/// - `amid_lambda` = 0, `amid_alpha` = -1: AMiD's assistant (Shin et al. 2026) in the student's place, the mixture
///   `r ~ (lambda p^c + (1 - lambda) q^c)^(1/c)` with c = (1 - alpha)/2: D(p, r). With alpha = -1 forward KL is the skewed one.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "Parts", into = "Parts")]
pub struct Divergence {
    definition: &'static Definition,
    values: Params,
    view: View,
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

impl PartialEq for Divergence {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id() && self.values == other.values && self.view == other.view
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())?;
        let own = self.definition.parameters.len();
        for (i, (name, value)) in self.params().into_iter().enumerate() {
            f.write_str(if i == 0 { ":" } else { "," })?;
            if i >= own {
                write!(f, "{name}=")?;
            }
            write!(f, "{value}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Divergence {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (id, numbers) = text
            .split_once(':')
            .map_or((text, None), |(id, numbers)| (id, Some(numbers)));
        let known = Self::with_defaults(id)?.params();
        let bad = |what: String| Error::LossText {
            text: text.to_string(),
            what,
        };
        let mut params = BTreeMap::new();
        for (i, part) in numbers.iter().flat_map(|n| n.split(',')).enumerate() {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), value.trim()),
                None => match known.get(i) {
                    Some((name, _)) => (*name, part.trim()),
                    None => {
                        let most = known.len();
                        return Err(bad(format!("`{id}` has {most} parameters, not more")));
                    }
                },
            };
            let number = value
                .parse()
                .map_err(|_| bad(format!("`{value}` is not a number")))?;
            if params.insert(name.to_string(), number).is_some() {
                return Err(bad(format!("`{name}` is given twice")));
            }
        }
        Self::from_parts(id, &params)
    }
}

impl Divergence {
    pub(crate) const fn new(definition: &'static Definition, values: Params) -> Self {
        Self {
            definition,
            values,
            view: View::WHOLE,
        }
    }

    /// The same of softmaxes at a temperature `tau`, a number from 0.01 to 1000; `squared` multiplies value and gradient by
    /// its square.
    pub const fn at_temperature(self, tau: f64, squared: bool) -> Self {
        let view = View {
            tau,
            squared: if squared { 1.0 } else { 0.0 },
            ..self.view
        };
        self.with_view(view)
    }

    /// The same of the teacher's `top` likeliest tokens and one class for all others; 0: of all tokens.
    pub const fn of_top(self, top: usize) -> Self {
        let view = View {
            top: top as f64,
            ..self.view
        };
        self.with_view(view)
    }

    /// The same of AMiD's assistant in the student's place: a mixture along the path `alpha` in which the teacher has the share
    /// `lambda`, from 0 (none) to below 1.
    pub const fn with_assistant(self, alpha: f64, lambda: f64) -> Self {
        let view = View {
            amid_lambda: lambda,
            amid_alpha: alpha,
            ..self.view
        };
        self.with_view(view)
    }

    pub(crate) fn view(&self) -> View {
        self.view
    }

    pub(crate) const fn with_view(self, view: View) -> Self {
        Self { view, ..self }
    }

    /// Every divergence with the paper's parameters, in the order of the paper's tables.
    pub fn all() -> impl Iterator<Item = Self> {
        ALL.iter().map(|definition| {
            let mut values = Params::default();
            for (value, parameter) in values.iter_mut().zip(definition.parameters) {
                *value = parameter.default;
            }
            Self::new(definition, values)
        })
    }

    fn with_defaults(id: &str) -> Result<Self, Error> {
        Self::all()
            .find(|divergence| divergence.id() == id)
            .ok_or_else(|| Error::UnknownLoss {
                id: id.to_string(),
                nearest: nearest(id),
                known: ids().collect::<Vec<_>>().join(", "),
            })
    }

    /// The divergence with this id; parameters that are not given have the paper's values.
    ///
    /// # Errors
    /// An unknown id (with the nearest known one), a parameter that the divergence does not have, a value outside its range.
    pub fn from_parts(id: &str, params: &BTreeMap<String, f64>) -> Result<Self, Error> {
        let mut divergence = Self::with_defaults(id)?;
        for (name, value) in params {
            let unknown = divergence.has_no(name);
            *divergence.value_mut(name).ok_or(unknown)? = *value;
        }
        divergence.validate()?;
        Ok(divergence)
    }

    /// All parameters with their values: its own in the order of the formula, then those of every divergence.
    fn all_params(&self) -> impl Iterator<Item = (&'static Parameter, f64)> + use<> {
        let own = self.definition.parameters.iter().zip(self.values);
        own.chain(view::PARAMETERS.iter().zip(self.view.values()))
    }

    fn value_mut(&mut self, name: &str) -> Option<&mut f64> {
        let own = self.definition.parameters.iter().zip(&mut self.values);
        let mut all = own.chain(view::PARAMETERS.iter().zip(self.view.values_mut()));
        all.find_map(|(parameter, value)| (parameter.name == name).then_some(value))
    }

    fn has_no(&self, name: &str) -> Error {
        let names: Vec<_> = self.all_params().map(|(p, _)| p.name).collect();
        Error::UnknownParameter {
            id: self.id(),
            name: name.to_string(),
            known: names.join(", "),
        }
    }

    /// The parameters by name: its own in the order of the formula, then those of every divergence that are not at their
    /// defaults.
    pub fn params(&self) -> Vec<(&'static str, f64)> {
        let own = self.definition.parameters.len();
        let stated = self.all_params().enumerate();
        let stated = stated.filter(|(i, (p, value))| *i < own || *value != p.default);
        stated.map(|(_, (p, value))| (p.name, value)).collect()
    }

    /// A parameter's value; `None` where the divergence has no parameter of this name.
    pub fn param(&self, name: &str) -> Option<f64> {
        self.all_params()
            .find_map(|(p, value)| (p.name == name).then_some(value))
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// Weights (`weight`, `lambda`, `mu`) must lie in `[0, 1]`, exponents must be finite and at most 1000 in size, a
    /// temperature from 0.01 to 1000, `squared` is 0 or 1, `top` a number of tokens, `amid_lambda` a
    /// share below 1, `amid_alpha` at most 100 in size.
    pub fn validate(&self) -> Result<(), Error> {
        for (parameter, value) in self.all_params() {
            if !(parameter.range.contains)(value) {
                return Err(Error::Parameter {
                    id: self.id(),
                    name: parameter.name,
                    value,
                    range: parameter.range.text,
                });
            }
        }
        Ok(())
    }

    /// The name in settings and result files.
    pub fn id(&self) -> &'static str {
        self.definition.id
    }

    /// The name in the paper's tables.
    pub fn label(&self) -> &'static str {
        self.definition.label
    }

    /// The formula (p = teacher, q = student, m = mixture), for help texts.
    pub fn formula(&self) -> &'static str {
        self.definition.formula
    }

    /// The reading that a comparison with the paper's tables should use: the formula for the alpha-beta family and the
    /// plain KLs (whose official value differs by the teacher's entropy, or by the factor of a limit), the released code
    /// where it alone defines the experiment (BDKD, Jensen, AKL, AlphaNet).
    pub fn default_fidelity(&self) -> Fidelity {
        self.definition.default_fidelity
    }

    /// Whether the rows of a call depend on one another.
    pub(crate) fn chooses_together(&self, fidelity: Fidelity) -> bool {
        matches!(self.definition.form, Form::Larger(_)) && fidelity == Fidelity::Official
    }

    pub(crate) fn definition(&self) -> &'static Definition {
        self.definition
    }

    /// The parameters' values.
    pub(crate) fn values(&self) -> Params {
        self.values
    }
}

fn ids() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|definition| definition.id)
}

fn nearest(id: &str) -> &'static str {
    let lower = id.to_lowercase();
    let score = |known: &str| strsim::jaro_winkler(&lower, known);
    ids()
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: &str, params: &[(&str, f64)]) -> Result<Divergence, Error> {
        let params = params.iter().map(|(k, v)| (k.to_string(), *v)).collect();
        Divergence::from_parts(id, &params)
    }

    fn read(text: &str) -> Result<Divergence, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }

    #[test]
    fn every_id_names_one_divergence_that_takes_its_own_parameters() {
        for divergence in Divergence::all() {
            let id = divergence.id();
            assert_eq!(ids().filter(|other| *other == id).count(), 1, "{id}");
            assert_eq!(parts(id, &[]).unwrap(), divergence);
            let parameters = divergence.definition().parameters;
            let mut given = divergence.params();
            assert_eq!(given.len(), parameters.len(), "{id}: what `Params` holds");
            for (_, value) in &mut given {
                *value = 0.25;
            }
            let other = parts(id, &given).unwrap();
            assert_eq!(other.params(), given);
            for (name, value) in given {
                assert_eq!(other.param(name), Some(value));
            }
            assert_eq!(divergence.param("no such"), None);
        }
    }

    #[test]
    fn files_hold_id_and_parameters() {
        for divergence in Divergence::all() {
            let text = serde_json::to_string(&divergence).unwrap();
            assert_eq!(
                serde_json::from_str::<Divergence>(&text).unwrap(),
                divergence
            );
        }
        let text = |divergence| serde_json::to_string(&divergence).unwrap();
        assert_eq!(
            text(Divergence::forward_kl()),
            r#"{"id":"fkld","params":{}}"#
        );
        assert_eq!(
            text(Divergence::alpha_beta(0.2, 0.7)),
            r#"{"id":"ab","params":{"alpha":0.2,"beta":0.7}}"#
        );
        let error = serde_json::from_str::<Divergence>(r#"{"id":"ab","params":{"alfa":1.0}}"#);
        assert!(error.unwrap_err().to_string().contains("alfa"));
    }

    #[test]
    fn text_is_read_as_it_is_written() {
        for divergence in Divergence::all() {
            assert_eq!(read(&divergence.to_string()), Ok(divergence));
        }
        assert_eq!(read("jensen"), Ok(Divergence::jensen(0.1)));
        assert_eq!(read("ab:0.5"), Ok(Divergence::alpha_beta(0.5, 0.7)));
        let by_name = read("ab: beta = -1e-3, alpha = 1");
        assert_eq!(by_name, Ok(Divergence::alpha_beta(1.0, -1e-3)));
        let warm = Divergence::alpha_beta(0.2, 0.7).at_temperature(2.0, true);
        assert_eq!(read("ab:0.2,tau=2,squared=1"), Ok(warm));
        assert_eq!(warm.to_string(), "ab:0.2,0.7,tau=2,squared=1");
        assert_ne!(warm, Divergence::alpha_beta(0.2, 0.7));
        assert_eq!(warm.param("tau"), Some(2.0));
        let text = serde_json::to_string(&warm).unwrap();
        assert_eq!(serde_json::from_str::<Divergence>(&text).unwrap(), warm);
        assert_eq!(read("ab:tau=1").unwrap().to_string(), "ab:0.2,0.7");
        for (text, says) in [
            ("fkl", "mean `fkld`"),
            ("ab:0.2,0.7,1", "`ab` has 2 parameters, not more"),
            ("tvd:1", "`tvd` has 0 parameters"),
            ("ab:", "`` is not a number"),
            ("ab:0.2,x", "loss `ab:0.2,x`: `x` is not a number"),
            ("ab:0.2,alpha=0.2", "`alpha` is given twice"),
            (
                "ab:gamma=1",
                "no parameter `gamma`; it has alpha, beta, tau, squared, top, amid_lambda, amid_alpha",
            ),
            ("ab:tau=0", "tau = 0 is not a temperature"),
            ("fkld:tau=2,squared=0.5", "squared = 0.5 is not 0 or 1"),
            ("fkld:top=1.5", "top = 1.5 is not a number of tokens"),
            (
                "fkld:amid_lambda=1",
                "amid_lambda = 1 is not the teacher's share",
            ),
            ("fkld:2", "`fkld` has 0 parameters"),
            ("jensen:1.5", "lambda = 1.5 is not a number in [0, 1]"),
            ("ab:nan,1", "alpha = NaN is not a finite number"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
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
            "loss `ab` has no parameter `gamma`; it has alpha, beta, tau, squared, top, amid_lambda, amid_alpha"
        );
        let text = parts("tvd", &[("mu", 1.0)]).unwrap_err().to_string();
        assert!(
            text.ends_with("it has tau, squared, top, amid_lambda, amid_alpha"),
            "{text}"
        );
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
    }
}
