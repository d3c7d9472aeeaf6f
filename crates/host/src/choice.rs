//! Settings that are one of a few words, for the crates that have settings.

/// Defines an enum that files write as one of a few words. An unknown word is refused with the key, the word and all known
/// words; serde's own message for an enum does not name the key.
#[macro_export]
macro_rules! choice {
    (
        $key:literal
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(try_from = "String", into = "&'static str")]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl From<$name> for &'static str {
            fn from(choice: $name) -> &'static str {
                match choice { $($name::$variant => $word,)+ }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(word: String) -> Result<Self, String> {
                match word.as_str() {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!(
                        "{}: unknown `{word}`, expected one of {}",
                        $key,
                        [$(concat!("`", $word, "`")),+].join(", ")
                    )),
                }
            }
        }
    };
}
