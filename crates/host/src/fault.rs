//! Deliberate faults, on which the tests are checked. A mutation tool cannot make some mistakes in a formula: a wrong
//! exponent, a missing bias correction. Each stands beside the right formula, `fault!("name", right, wrong)`, and moves with
//! it. With the feature `faults` the environment variable `ABKD_FAULT` chooses one; `tools/mutants.sh` checks that a test
//! fails for each. Without the feature the program contains none of them.

#[cfg(feature = "faults")]
use std::sync::OnceLock;

/// Whether this fault is chosen.
#[inline(always)]
pub fn is(name: &str) -> bool {
    #[cfg(feature = "faults")]
    {
        static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| std::env::var("ABKD_FAULT").ok());
        return chosen.as_deref() == Some(name);
    }
    #[cfg(not(feature = "faults"))]
    {
        let _ = name;
        false
    }
}

/// `fault!("name", right, wrong)`: the right value, or the wrong one where the fault of this name is [chosen](mod@crate::fault).
#[macro_export]
macro_rules! fault {
    ($name:literal, $right:expr, $wrong:expr) => {
        if $crate::fault::is($name) {
            $wrong
        } else {
            $right
        }
    };
}
