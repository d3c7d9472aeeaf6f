//! Faults that the tests are tried on. Some mistakes in a formula no tool can make by itself: a wrong exponent, a bias
//! correction left out. They stand beside the right formula, `fault!("name", right, wrong)`, and move with it. With the
//! feature `faults` the environment variable `ABKD_FAULT` chooses one; `tools/mutants.sh` sees that a test fails for each.
//! Without the feature nothing of it is in the program.

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

/// `fault!("name", right, wrong)`: the right value, or the wrong one where the fault of this name is [chosen](crate::fault).
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
