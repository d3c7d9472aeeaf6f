//! The fixed vocabulary of the embedded corpus's contents.

pub const NAMES: &[&str] = &[
    "anna", "tom", "maria", "peter", "lena", "paul", "nina", "oscar", "julia", "felix", "clara",
    "simon", "laura", "david", "emma", "jonas", "sofia", "martin", "rosa", "henry", "alice",
    "victor", "grace", "leo",
];
pub const OBJECTS: &[&str] = &[
    "hat", "cup", "book", "lamp", "chair", "bag", "coat", "clock", "pen", "box", "ring", "knife",
    "plate", "bottle", "key", "map", "scarf", "shoe", "drum", "kite", "mirror", "basket", "candle",
    "ladder", "bell", "blanket", "pillow", "brush", "rope", "wheel",
];
pub const COLORS: &[&str] = &[
    "red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "grey",
];
pub const PLACES: &[&str] = &[
    "garden", "kitchen", "forest", "school", "market", "harbor", "library", "village", "castle",
    "station", "park", "museum", "barn", "valley", "island", "theater",
];
pub const ANIMALS: &[&str] = &[
    "dog", "cat", "horse", "cow", "sheep", "goat", "fox", "wolf", "bear", "rabbit", "mouse",
    "duck", "goose", "owl", "eagle", "frog", "snake", "turtle", "pig", "deer",
];
pub const FOODS: &[&str] = &[
    "bread", "soup", "cheese", "apple", "pear", "cake", "rice", "honey", "salad", "onion", "lemon",
    "carrot", "bean", "plum", "grape", "potato",
];
/// Present and past tense.
pub const VERBS: &[(&str, &str)] = &[
    ("opens", "opened"),
    ("cleans", "cleaned"),
    ("paints", "painted"),
    ("carries", "carried"),
    ("finds", "found"),
    ("sells", "sold"),
    ("buys", "bought"),
    ("hides", "hid"),
    ("takes", "took"),
    ("brings", "brought"),
    ("breaks", "broke"),
    ("keeps", "kept"),
    ("sees", "saw"),
    ("loses", "lost"),
    ("moves", "moved"),
    ("holds", "held"),
];
/// Adjectives of a good mood; the next list has those of a bad one.
pub const GOOD: &[&str] = &["happy", "proud", "calm", "glad", "cheerful", "hopeful"];
pub const BAD: &[&str] = &["sad", "angry", "tired", "afraid", "lonely", "worried"];
/// A job and its work.
pub const JOBS: &[(&str, &str)] = &[
    ("baker", "makes bread every morning"),
    ("farmer", "grows food and keeps animals"),
    ("teacher", "helps children to learn"),
    ("doctor", "helps people who are ill"),
    ("sailor", "works on a ship at sea"),
    ("gardener", "plants flowers and trees"),
    ("tailor", "makes and mends clothes"),
    ("pilot", "flies a plane over the land"),
    ("painter", "paints pictures and walls"),
    ("cook", "makes warm meals for guests"),
    ("singer", "sings songs for people"),
    ("guard", "keeps a house safe at night"),
];
