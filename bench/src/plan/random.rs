//! The randomness of a plan: fio's generators and seeds, so that the same `randseed` means the same operations.

/// L'Ecuyer's combined Tausworthe generator of three components (Mathematics of Computation 65, 1996, page 203; seeds as
/// its erratum asks).
#[derive(Debug, Clone)]
pub struct Taus88([u32; 3]);

impl Taus88 {
    /// As fio seeds it: three steps of a multiplicative generator, each lifted over the least seed its component works
    /// with, then six draws thrown away. Only the low 32 bits of the seed count.
    pub fn new(seed: u64) -> Taus88 {
        let seed = seed as u32;
        let mut previous: u32 = 53;
        let state = [1_u32, 7, 15].map(|least| {
            let value = previous.wrapping_mul(69069) ^ seed;
            previous = if value < least { value + least } else { value };
            previous
        });
        let mut generator = Taus88(state);
        for _ in 0..6 {
            generator.draw();
        }
        generator
    }

    pub fn draw(&mut self) -> u32 {
        let [a, b, c] = &mut self.0;
        *a = (*a & !1) << 12 ^ (*a << 13 ^ *a) >> 19;
        *b = (*b & !7) << 4 ^ (*b << 2 ^ *b) >> 25;
        *c = (*c & !15) << 17 ^ (*c << 3 ^ *c) >> 11;
        *a ^ *b ^ *c
    }

    /// From 0 up to but without 1.
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.draw()) / 4_294_967_296.0
    }

    /// From 1 to 100.
    pub fn percent(&mut self) -> u8 {
        1 + (100.0 * self.fraction()) as u8
    }
}

/// What a seed is for; the numbers are fio's.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    ReadSizes = 0,
    WriteSizes = 1,
    Mix = 4,
    Offsets = 6,
}

/// The seed of one purpose, for one clone: fio multiplies `randseed` by a prime once more for every purpose.
pub fn seed(randseed: u64, thread_number: u32, purpose: Purpose) -> u64 {
    let purpose = purpose as u32;
    let seed = randseed.wrapping_mul(0x9e37_0001_u64.wrapping_pow(4 + purpose));
    seed.wrapping_mul(thread_number.into()).wrapping_add(purpose.into())
}

/// Zipf's distribution by the method of Gray and others (SIGMOD 1994), its ranks scattered over the file.
#[derive(Debug, Clone)]
pub struct Zipf {
    random: Taus88,
    blocks: u64,
    shift: u64,
    theta: f64,
    zeta: f64,
    alpha: f64,
    eta: f64,
}

/// fio sums no more terms than this: past it the sum hardly grows, but takes seconds.
const ZETA_TERMS: u64 = 10_000_000;

impl Zipf {
    pub fn new(blocks: u64, theta: f64, seed: u64) -> Zipf {
        let mut random = Taus88::new(seed);
        let shift = random.draw().into();
        let zeta = (1..=blocks.min(ZETA_TERMS)).map(|rank| (1.0 / rank as f64).powf(theta)).sum::<f64>();
        let zeta_of_two = 1.0 + 0.5_f64.powf(theta);
        let alpha = 1.0 / (1.0 - theta);
        let eta = (1.0 - (2.0 / blocks as f64).powf(1.0 - theta)) / (1.0 - zeta_of_two / zeta);
        Zipf { random, blocks, shift, theta, zeta, alpha, eta }
    }

    /// A block of the file.
    pub fn draw(&mut self) -> u64 {
        let uniform = f64::from(self.random.draw()) / f64::from(u32::MAX);
        let z = uniform * self.zeta;
        let rank = if z < 1.0 {
            0
        } else if z < 1.0 + 0.5_f64.powf(self.theta) {
            1
        } else {
            (self.blocks as f64 * (self.eta * uniform - self.eta + 1.0).powf(self.alpha)) as u64
        };
        // Knuth's multiplicative hash by the golden ratio.
        let place = rank.wrapping_mul(0x61c8_8646_80b5_83eb);
        place.wrapping_add(self.shift) % self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_theta_is_flat_and_a_large_one_steep() {
        let share_of_hottest = |theta| {
            let mut zipf = Zipf::new(1000, theta, 7);
            let mut hits = vec![0_u32; 1000];
            for _ in 0..20_000 {
                hits[zipf.draw() as usize] += 1;
            }
            f64::from(*hits.iter().max().expect("not empty")) / 20_000.0
        };
        assert!(share_of_hottest(0.1) < 0.02);
        assert!(share_of_hottest(1.5) > 0.3);
    }

    #[test]
    fn fractions_fill_the_unit_interval() {
        let mut random = Taus88::new(0x89);
        let mut tenths = [0_u32; 10];
        for _ in 0..10_000 {
            tenths[(random.fraction() * 10.0) as usize] += 1;
        }
        assert!(tenths.iter().all(|&count| (800..1200).contains(&count)), "{tenths:?}");
    }
}
