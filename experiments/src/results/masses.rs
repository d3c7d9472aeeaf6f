//! Where the students' probability mass lies: `<experiment>_masses.csv`.

use std::path::Path;

use abkd_training::head::{Masses, Shape};
use anyhow::Result;

use super::sheet::{Field, Sheet, write_lines};

const COLUMNS: [&str; 10] = [
    "loss",
    "training_seed",
    "updates",
    "head",
    "tail",
    "entropy",
    "overlap",
    "teacher_head",
    "teacher_tail",
    "teacher_entropy",
];

/// A student and its teacher at a validation.
#[derive(Clone, Debug, PartialEq)]
pub struct MassPoint {
    /// Label of the loss.
    pub loss: String,
    /// Seed of the training.
    pub training_seed: u64,
    /// Updates done.
    pub updates: u64,
    /// Means over the response tokens of the validation data.
    pub masses: Masses,
}

/// Writes the points with an atomic write.
///
/// # Errors
/// Names the file, or the point that is not a finite number.
pub fn write_masses(path: &Path, points: &[MassPoint]) -> Result<()> {
    let lines = points.iter().map(|point| {
        let Masses {
            student,
            teacher,
            overlap,
        } = point.masses;
        vec![
            point.loss.as_str().into(),
            point.training_seed.into(),
            point.updates.into(),
            Field::Fine(student.head),
            Field::Fine(student.tail),
            Field::Fine(student.entropy),
            Field::Fine(overlap),
            Field::Fine(teacher.head),
            Field::Fine(teacher.tail),
            Field::Fine(teacher.entropy),
        ]
    });
    write_lines(path, &COLUMNS, lines)
}

/// Reads what [`write_masses`] wrote.
///
/// # Errors
/// Names the file, and the line and column where a value is wrong.
pub fn read_masses(path: &Path) -> Result<Vec<MassPoint>> {
    let sheet = Sheet::open(path, &[&COLUMNS])?;
    let shape = |line, first: usize| {
        Ok::<_, anyhow::Error>(Shape {
            head: sheet.number(line, first)?,
            tail: sheet.number(line, first + 1)?,
            entropy: sheet.number(line, first + 2)?,
        })
    };
    (0..sheet.len())
        .map(|line| {
            Ok(MassPoint {
                loss: sheet.text(line, 0)?.to_string(),
                training_seed: sheet.whole(line, 1)?,
                updates: sheet.whole(line, 2)?,
                masses: Masses {
                    student: shape(line, 3)?,
                    overlap: sheet.number(line, 6)?,
                    teacher: shape(line, 7)?,
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x_masses.csv");
        let shape = |head, tail, entropy| Shape {
            head,
            tail,
            entropy,
        };
        let point = |loss: &str, updates| MassPoint {
            loss: loss.into(),
            training_seed: 2,
            updates,
            masses: Masses {
                student: shape(0.5, 0.125, 3.25),
                teacher: shape(0.625, 0.0625, 2.5),
                overlap: 0.75,
            },
        };
        let points = [point("FKLD", 94), point("ABKD, \"clipped\"", 188)];
        write_masses(&path, &points).unwrap();
        assert_eq!(read_masses(&path).unwrap(), points);
    }
}
