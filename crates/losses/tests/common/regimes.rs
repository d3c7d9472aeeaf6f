//! Rows of logits whose distributions are peaked, flat, or nearly equal.

/// How a teacher's and a student's rows are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Regime {
    /// Two independent models, both peaked.
    BothPeaked,
    /// The student peaked, the teacher nearly flat.
    StudentPeaked,
    /// The teacher peaked, the student nearly flat.
    TeacherPeaked,
    /// Both peaked on one token.
    SamePeak,
    /// The student's two likeliest tokens nearly tied, the teacher peaked elsewhere.
    TwoPeaks,
    /// Normal logits that agree up to noise of this size.
    Near(f64),
    /// The same, of nearly flat rows.
    NearFlat(f64),
}

impl Regime {
    pub const ALL: [Self; 13] = [
        Self::BothPeaked,
        Self::StudentPeaked,
        Self::TeacherPeaked,
        Self::SamePeak,
        Self::TwoPeaks,
        Self::Near(1.0),
        Self::Near(0.1),
        Self::Near(1e-2),
        Self::Near(1e-3),
        Self::Near(1e-4),
        Self::NearFlat(0.1),
        Self::NearFlat(1e-2),
        Self::NearFlat(1e-3),
    ];

    /// A row of the student's logits and one of the teacher's. `scale` is the peaked logits' standard deviation, `offset` is
    /// added to the teacher's logits.
    pub fn row(self, vocab: usize, scale: f64, offset: f64, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let mut normal = normal(seed);
        let mut draw = |scale: f64| -> Vec<f64> { (0..vocab).map(|_| scale * normal()).collect() };
        let near = |z: &[f64], noise: &[f64]| z.iter().zip(noise).map(|(z, e)| z + e).collect();
        let (mut z, mut t) = match self {
            Self::StudentPeaked => (draw(scale), draw(1.0)),
            Self::TeacherPeaked => (draw(1.0), draw(scale)),
            Self::Near(noise) => {
                let z = draw(scale);
                let t = near(&z, &draw(noise));
                (z, t)
            }
            Self::NearFlat(noise) => {
                let z = draw(1.0);
                let t = near(&z, &draw(noise));
                (z, t)
            }
            Self::BothPeaked | Self::SamePeak | Self::TwoPeaks => (draw(scale), draw(scale)),
        };
        let highest = |x: &[f64]| x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let at = seed as usize % vocab;
        match self {
            Self::SamePeak => {
                z[at] = highest(&z) + scale * 0.3;
                t[at] = highest(&t) + scale * 0.5;
            }
            Self::TwoPeaks => {
                z[at] = highest(&z) + scale * 0.3;
                z[(at + 1) % vocab] = z[at] - 1e-3;
            }
            _ => {}
        }
        let z = z.into_iter().map(|z| z as f32).collect();
        let t = t.into_iter().map(|t| (t + offset) as f32).collect();
        (z, t)
    }
}

/// Normal numbers (Box and Muller) from a seed.
pub fn normal(seed: u64) -> impl FnMut() -> f64 {
    let mut i = seed.wrapping_mul(0xD129_0B46_94D5_4D2F);
    let mut uniform = move || {
        i = i.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (i ^ (i >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    move || (-2.0 * (1.0 - uniform()).ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()
}
