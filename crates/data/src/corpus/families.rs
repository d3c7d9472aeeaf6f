//! Families of tasks. Each draws its contents at random and phrases the instruction in one of several
//! wordings; some wordings never occur in training.

use super::words::{ANIMALS, BAD, COLORS, FOODS, GOOD, JOBS, NAMES, OBJECTS, PLACES, VERBS};
use crate::Example;
use crate::rng::Rng;

/// Which wording of a family's instruction is used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wording {
    /// The wordings of the training set.
    Known,
    /// Other wordings of the same task.
    Other,
    /// A definition of the task.
    Definition,
}

/// Wordings of an instruction: two known ones, two others, one definition.
pub type Texts = [&'static str; 5];

fn wording(rng: &mut Rng, which: Wording, texts: &Texts) -> String {
    let index = match which {
        Wording::Known => rng.below(2),
        Wording::Other => 2 + rng.below(2),
        Wording::Definition => 4,
    };
    texts[index].to_owned()
}

fn example(instruction: String, input: String, outputs: Vec<String>) -> Example {
    Example {
        instruction,
        input,
        outputs,
        messages: Vec::new(),
    }
}

/// `n` different items.
fn several<'a>(rng: &mut Rng, items: &[&'a str], n: usize) -> Vec<&'a str> {
    let mut all = items.to_vec();
    rng.shuffle(&mut all);
    all.truncate(n);
    all
}

/// "a", "a and b", "a, b and c"
pub fn enumerate(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [rest @ .., last] => format!("{} and {last}", rest.join(", ")),
    }
}

/// A person who has an object: name, colour, object.
pub struct Fact<'a>(pub &'a str, pub &'a str, pub &'a str);

pub fn facts(rng: &mut Rng, n: usize) -> Vec<Fact<'static>> {
    let (names, objects) = (several(rng, NAMES, n), several(rng, OBJECTS, n));
    names
        .into_iter()
        .zip(objects)
        .map(|(name, object)| Fact(name, rng.pick::<&str>(COLORS), object))
        .collect()
}

pub fn tell(facts: &[Fact]) -> String {
    let told: Vec<String> = facts
        .iter()
        .map(|Fact(n, c, o)| format!("{n} has a {c} {o}."))
        .collect();
    told.join(" ")
}

pub fn lookup(rng: &mut Rng, which: Wording) -> Example {
    let n = 3 + rng.below(2);
    let known = facts(rng, n);
    let Fact(name, color, object) = &known[rng.below(n)];
    let text = wording(
        rng,
        which,
        &[
            "what does NAME have?",
            "say what NAME has.",
            "tell me which thing belongs to NAME.",
            "which thing is with NAME?",
            "you are given sentences about people and a name. your task is to answer what the person has. the name is NAME.",
        ],
    );
    let outputs = vec![
        format!("{name} has a {color} {object}."),
        format!("a {color} {object}."),
    ];
    example(text.replace("NAME", name), tell(&known), outputs)
}

pub fn passage(rng: &mut Rng, animals: &[&str]) -> String {
    let sentences: Vec<String> = animals
        .iter()
        .map(|animal| {
            let (name, place) = (*rng.pick(NAMES), *rng.pick(PLACES));
            match rng.below(3) {
                0 => format!("the {animal} is in the {place}."),
                1 => format!("{name} sees a {animal} near the {place}."),
                _ => format!("a {animal} comes to {name}."),
            }
        })
        .collect();
    sentences.join(" ")
}

pub fn extract(rng: &mut Rng, which: Wording) -> Example {
    let n = 2 + rng.below(3);
    let animals = several(rng, ANIMALS, n);
    let text = wording(
        rng,
        which,
        &[
            "list the animals in the passage.",
            "which animals are in the text?",
            "find every animal that the passage names.",
            "name all animals of this text.",
            "you are given a passage. your task is to list the animals in it, in any order.",
        ],
    );
    let list = |items: &[&str]| {
        let items: Vec<String> = items.iter().map(|a| format!("the {a}")).collect();
        format!("the animals are {}.", enumerate(&items))
    };
    let backward: Vec<&str> = animals.iter().rev().copied().collect();
    let input = passage(rng, &animals);
    example(text, input, vec![list(&animals), list(&backward)])
}

pub fn past(rng: &mut Rng, which: Wording) -> Example {
    let (present, past) = *rng.pick(VERBS);
    let (name, color, object, place) = (
        rng.pick(NAMES),
        rng.pick(COLORS),
        rng.pick(OBJECTS),
        rng.pick(PLACES),
    );
    let text = wording(
        rng,
        which,
        &[
            "rewrite the sentence in the past.",
            "put the sentence into the past.",
            "change this sentence so that it tells of the past.",
            "write it as something of the past.",
            "you are given a sentence about today. your task is to write the same sentence about yesterday.",
        ],
    );
    let say = |verb: &str| format!("{name} {verb} the {color} {object} in the {place}.");
    example(
        text,
        say(present),
        vec![say(past), format!("yesterday {}", say(past))],
    )
}

pub fn polite(rng: &mut Rng, which: Wording) -> Example {
    let (verb, color, object) = (
        rng.pick(&["give", "bring", "show", "send"]),
        rng.pick(COLORS),
        rng.pick(OBJECTS),
    );
    let text = wording(
        rng,
        which,
        &[
            "make the request polite.",
            "rewrite the request in a polite way.",
            "say this in a kind and polite form.",
            "turn it into a polite question.",
            "you are given a short request. your task is to write a polite question with the same meaning.",
        ],
    );
    let ask = format!("{verb} me the {color} {object}");
    let outputs = vec![
        format!("could you please {ask}?"),
        format!("would you please {ask}?"),
    ];
    example(text, format!("{ask}."), outputs)
}

pub fn replace(rng: &mut Rng, which: Wording) -> Example {
    let (names, objects) = (several(rng, NAMES, 1), several(rng, OBJECTS, 2));
    let (verb, color, place) = (rng.pick(VERBS).0, rng.pick(COLORS), rng.pick(PLACES));
    let text = wording(
        rng,
        which,
        &[
            "replace the OLD by a NEW.",
            "write NEW where the text has OLD.",
            "use NEW and not OLD in this sentence.",
            "change OLD to NEW.",
            "you are given a sentence and two words. your task is to replace the first word by the second. the words are OLD and NEW.",
        ],
    );
    let say = |object: &str| format!("{} {verb} the {color} {object} near the {place}.", names[0]);
    let text = text.replace("OLD", objects[0]).replace("NEW", objects[1]);
    let answer = say(objects[1]);
    example(
        text,
        say(objects[0]),
        vec![answer.clone(), format!("the new sentence is, {answer}")],
    )
}

pub fn order(rng: &mut Rng, which: Wording) -> Example {
    let n = 3 + rng.below(3);
    let words = several(rng, &[FOODS, ANIMALS].concat(), n);
    let mut answer = words.clone();
    let sorted = rng.below(2) == 0;
    let text = if sorted {
        answer.sort_unstable();
        wording(
            rng,
            which,
            &[
                "sort the words by their first letter.",
                "write the words as in a dictionary.",
                "put these words into the order of the alphabet.",
                "order the list by letter.",
                "you are given some words. your task is to write them in the order of the alphabet.",
            ],
        )
    } else {
        answer.reverse();
        wording(
            rng,
            which,
            &[
                "write the words in reverse order.",
                "start with the last word and end with the first.",
                "turn the list around.",
                "give the words backward.",
                "you are given some words. your task is to write them from the last to the first.",
            ],
        )
    };
    let outputs = vec![
        format!("{}.", answer.join(", ")),
        format!("the words are {}.", answer.join(", ")),
    ];
    example(text, format!("{}.", words.join(", ")), outputs)
}

pub fn classify(rng: &mut Rng, which: Wording) -> Example {
    let good = rng.below(2) == 0;
    let feeling = *rng.pick(if good { GOOD } else { BAD });
    let (names, objects) = (several(rng, NAMES, 2), several(rng, OBJECTS, 1));
    let verb = rng.pick(VERBS).1;
    let text = wording(
        rng,
        which,
        &[
            "is the mood good or bad? give a reason.",
            "say if the person feels good or bad, and why.",
            "decide between good and bad and explain it.",
            "how is the mood here, good or bad?",
            "you are given a short text. your task is to say if its mood is good or bad, with a reason.",
        ],
    );
    let input = format!(
        "{} {verb} a {} for {}. now {} is {feeling}.",
        names[0], objects[0], names[1], names[1]
    );
    let mood = if good { "good" } else { "bad" };
    let outputs = vec![
        format!("the mood is {mood}, because {} is {feeling}.", names[1]),
        format!("{mood}, because {} is {feeling}.", names[1]),
    ];
    example(text, input, outputs)
}

pub fn summarize(rng: &mut Rng, which: Wording) -> Example {
    let n = 2 + rng.below(2);
    let known = facts(rng, n);
    let text = wording(
        rng,
        which,
        &[
            "say it in one sentence without the colors.",
            "write one short sentence about who has what.",
            "make the text short and leave the colors out.",
            "give a summary that names no color.",
            "you are given sentences about people. your task is to write one sentence that says who has what, without colors.",
        ],
    );
    let parts: Vec<String> = known
        .iter()
        .map(|Fact(n, _, o)| format!("{n} has a {o}"))
        .collect();
    let backward: Vec<String> = parts.iter().rev().cloned().collect();
    example(
        text,
        tell(&known),
        vec![
            format!("{}.", enumerate(&parts)),
            format!("{}.", enumerate(&backward)),
        ],
    )
}

pub fn describe(rng: &mut Rng, which: Wording) -> Example {
    let (job, does) = *rng.pick(JOBS);
    let (name, place) = (rng.pick(NAMES), rng.pick(PLACES));
    let text = wording(
        rng,
        which,
        &[
            "describe NAME, the JOB from the PLACE.",
            "who is NAME, the JOB of the PLACE?",
            "what does NAME do, who is the JOB at the PLACE?",
            "explain the work of NAME, a JOB near the PLACE.",
            "you are given a person, a job and a place. your task is to describe the person. it is NAME, the JOB from the PLACE.",
        ],
    );
    let text = text
        .replace("NAME", name)
        .replace("JOB", job)
        .replace("PLACE", place);
    let feels = rng.pick(GOOD);
    let outputs = vec![
        format!("{name} is a {job} who {does}. the people of the {place} are {feels} about it."),
        format!("{name} is a {job} who {does}."),
    ];
    example(text, String::new(), outputs)
}

pub fn list(rng: &mut Rng, which: Wording) -> Example {
    let (kind, items) = *rng.pick(&[
        ("animals", ANIMALS),
        ("foods", FOODS),
        ("places", PLACES),
        ("things", OBJECTS),
    ]);
    let n = 2 + rng.below(3);
    let (number, name) = (["two", "three", "four"][n - 2], rng.pick(NAMES));
    let text = wording(
        rng,
        which,
        &[
            "name NUMBER KIND that NAME likes.",
            "write a list of NUMBER KIND for NAME.",
            "which NUMBER KIND would you show to NAME?",
            "NAME wants NUMBER KIND. which ones?",
            "your task is to name some things of a kind that a person likes. the person is NAME, the kind is KIND, the number is NUMBER.",
        ],
    );
    let text = text
        .replace("NUMBER", number)
        .replace("KIND", kind)
        .replace("NAME", name);
    let mut choose = || {
        let chosen: Vec<String> = several(rng, items, n)
            .iter()
            .map(|i| format!("the {i}"))
            .collect();
        format!("{name} likes {}.", enumerate(&chosen))
    };
    let outputs = vec![choose(), choose(), choose()];
    example(text, String::new(), outputs)
}

/// A story of `n + 1` random sentences about its hero and place.
fn tale(rng: &mut Rng, hero: &str, place: &str, n: usize) -> String {
    let mut told = vec![format!(
        "once a {} {hero} lived in the {place}.",
        rng.pick(&["small", "old", "young", "big"])
    )];
    for _ in 1..n {
        let (name, object, color) = (rng.pick(NAMES), rng.pick(OBJECTS), rng.pick(COLORS));
        told.push(match rng.below(6) {
            0 => format!("one day the {hero} found a {color} {object}."),
            1 => format!("then {name} came to the {place} and gave the {hero} a {object}."),
            2 => format!(
                "the {hero} was {} and went to see {name}.",
                rng.pick(&[GOOD, BAD].concat())
            ),
            3 => format!("a {} wanted the {color} {object} too.", rng.pick(ANIMALS)),
            4 => format!(
                "{name} and the {hero} ate {} near the {place}.",
                rng.pick(FOODS)
            ),
            _ => format!("the {hero} {} the {object} of {name}.", rng.pick(VERBS).1),
        });
    }
    told.push(format!("in the end the {hero} was {}.", rng.pick(GOOD)));
    told.join(" ")
}

pub fn story(rng: &mut Rng, which: Wording) -> Example {
    open(rng, which, 1, 2)
}

/// A long story, for the test set `vicuna` of long answers.
pub fn long_story(rng: &mut Rng, which: Wording) -> Example {
    open(rng, which, 4, 3)
}

fn open(rng: &mut Rng, which: Wording, least: usize, spread: usize) -> Example {
    let (hero, place) = (*rng.pick(ANIMALS), *rng.pick(PLACES));
    let n = least + 1 + rng.below(spread);
    let size = if least > 1 { "long" } else { "short" };
    let text = wording(
        rng,
        which,
        &[
            "write a SIZE story about a HERO in the PLACE.",
            "tell me a SIZE story of the HERO from the PLACE.",
            "make up a SIZE tale with a HERO and a PLACE.",
            "i want to read something SIZE about the HERO of the PLACE.",
            "your task is to write a SIZE story with the given hero and place. the hero is a HERO, the place is the PLACE.",
        ],
    );
    let text = text
        .replace("SIZE", size)
        .replace("HERO", hero)
        .replace("PLACE", place);
    let outputs = (0..3).map(|_| tale(rng, hero, place, n)).collect();
    example(text, String::new(), outputs)
}

pub fn letter(rng: &mut Rng, which: Wording) -> Example {
    let (names, object, color) = (several(rng, NAMES, 2), rng.pick(OBJECTS), rng.pick(COLORS));
    let text = wording(
        rng,
        which,
        &[
            "write a note from FROM to TO about the COLOR THING.",
            "FROM writes to TO about a COLOR THING. write it.",
            "help FROM to tell TO of the COLOR THING.",
            "what could FROM write to TO on the COLOR THING?",
            "your task is to write a note. it is from FROM to TO and about the COLOR THING.",
        ],
    );
    let text = text
        .replace("FROM", names[0])
        .replace("TO", names[1])
        .replace("COLOR", color)
        .replace("THING", object);
    let mut write = || {
        let place = rng.pick(PLACES);
        let middle = match rng.below(3) {
            0 => format!("i found the {color} {object} in the {place}."),
            1 => format!("please bring the {color} {object} to the {place}."),
            _ => format!(
                "thank you for the {color} {object}, i am {} about it.",
                rng.pick(GOOD)
            ),
        };
        format!(
            "dear {}, {middle} see you at the {place}. yours, {}.",
            names[1], names[0]
        )
    };
    let outputs = vec![write(), write(), write()];
    example(text, String::new(), outputs)
}

/// Families of the training set.
pub const FAMILIES: &[fn(&mut Rng, Wording) -> Example] = &[
    lookup, extract, past, polite, replace, order, classify, summarize, describe, list, story,
    letter,
];

/// New combinations of skills that the families teach one by one.
pub fn composed(rng: &mut Rng) -> Example {
    match rng.below(5) {
        0 => {
            let n = 2 + rng.below(3);
            let animals = several(rng, ANIMALS, n);
            let input = passage(rng, &animals);
            let answer: Vec<String> = animals.iter().rev().map(|a| format!("the {a}")).collect();
            let text = "list the animals in the passage in reverse order.".to_owned();
            example(
                text,
                input,
                vec![format!("the animals are {}.", enumerate(&answer))],
            )
        }
        1 => {
            let (verb, color, object, name) = (
                rng.pick(&["give", "bring", "show", "send"]),
                rng.pick(COLORS),
                rng.pick(OBJECTS),
                rng.pick(NAMES),
            );
            let text = format!("make the request polite and name {name}.");
            let ask = format!("{verb} me the {color} {object}");
            example(
                text,
                format!("{ask}."),
                vec![format!("{name}, could you please {ask}?")],
            )
        }
        2 => {
            let (present, past) = *rng.pick(VERBS);
            let objects = several(rng, OBJECTS, 2);
            let (name, color, place) = (rng.pick(NAMES), rng.pick(COLORS), rng.pick(PLACES));
            let text = format!(
                "rewrite the sentence in the past and replace the {} by a {}.",
                objects[0], objects[1]
            );
            let say = |verb: &str, object: &str| {
                format!("{name} {verb} the {color} {object} in the {place}.")
            };
            example(text, say(present, objects[0]), vec![say(past, objects[1])])
        }
        3 => {
            let known = facts(rng, 4);
            let (a, b) = (rng.below(2), 2 + rng.below(2));
            let (Fact(n1, c1, o1), Fact(n2, c2, o2)) = (&known[a], &known[b]);
            let text = format!("what does {n1} have, and what does {n2} have?");
            let answer = format!("{n1} has a {c1} {o1} and {n2} has a {c2} {o2}.");
            example(text, tell(&known), vec![answer])
        }
        _ => {
            let known = facts(rng, 3);
            let mut names: Vec<String> =
                known.iter().map(|Fact(n, _, _)| (*n).to_owned()).collect();
            names.sort_unstable();
            let text = "list the people in the passage and sort the words by their first letter."
                .to_owned();
            example(
                text,
                tell(&known),
                vec![format!("the people are {}.", enumerate(&names))],
            )
        }
    }
}
