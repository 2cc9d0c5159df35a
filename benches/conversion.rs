//! What exact money costs: an amount from one asset to another, for each kind of rate, against the bare multiplication and
//! division. Every result is compared with the same conversion in rational numbers.

use std::hint::black_box;

use clearway::pipeline::rates::{Conversion, Decimal};
use criterion::Criterion;
use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{One, ToPrimitive};

use support::{Digest, Random, Work, measure, size};

mod support;

fn main() {
    support::main(&[convert, make]);
}

/// A pair of assets: rates and scales, and what we keep.
struct Pair {
    name: &'static str,
    rates: [&'static str; 2],
    scales: [u8; 2],
    spread: &'static str,
}

const SAME: Pair = Pair {
    name: "same asset",
    rates: ["1", "1"],
    scales: [9, 9],
    spread: "0",
};

const SHORT: Pair = Pair {
    name: "short rates",
    rates: ["1.0862", "0.0074"],
    scales: [9, 6],
    spread: "0.01",
};

const LONG: Pair = Pair {
    name: "long rates",
    rates: ["97412.83051937462018", "3.0148822930175536281"],
    scales: [8, 6],
    spread: "0.00125",
};

impl Pair {
    fn conversion(&self) -> Conversion {
        let [from, to, spread] = [self.rates[0], self.rates[1], self.spread].map(decimal);
        Conversion::new(&from, &to, self.scales[0], self.scales[1], &spread)
    }

    /// Units of the outgoing asset for one of the incoming, computed apart from [`Conversion`].
    fn factor(&self) -> BigRational {
        let [from, to, spread] = [self.rates[0], self.rates[1], self.spread].map(rational);
        let ten = BigRational::from(BigInt::from(10));
        from / to * (BigRational::one() - spread) * ten.pow(i32::from(self.scales[1]) - i32::from(self.scales[0]))
    }
}

fn decimal(text: &str) -> Decimal {
    Decimal::parse(text).expect("a number was written")
}

fn rational(text: &str) -> BigRational {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: BigInt = format!("{whole}{fraction}").parse().expect("digits were written");
    BigRational::new(digits, BigInt::from(10).pow(fraction.len() as u32))
}

/// Amounts between 2^20 and 2^40, which all of the pairs can convert.
fn amounts() -> Vec<u64> {
    let mut random = Random::from_seed(4);
    (0..size(64, 4_096))
        .map(|_| (random.next() >> 24 | 1 << 39) >> random.below(20))
        .collect()
}

fn exactly(amount: u64, factor: &BigRational) -> u64 {
    let exact = factor * BigRational::from(BigInt::from(amount));
    exact.floor().to_integer().to_u64().expect("it was chosen to fit")
}

fn convert(criterion: &mut Criterion) {
    const NUMERATOR: u64 = 1_086_200;
    const DENOMINATOR: u64 = 7_474_747;

    let amounts = amounts();
    let bare: Digest = amounts
        .iter()
        .map(|&amount| exactly(amount, &BigRational::new(NUMERATOR.into(), DENOMINATOR.into())))
        .collect();
    let mut works = vec![Work::new("multiply and divide", bare.get(), || {
        let (numerator, denominator) = black_box((u128::from(NUMERATOR), u128::from(DENOMINATOR)));
        let mut digest = Digest::default();
        for &amount in black_box(&amounts) {
            digest.add((u128::from(amount) * numerator / denominator) as u64);
        }
        digest.get()
    })];
    for pair in [SAME, SHORT, LONG] {
        let factor = pair.factor();
        let expected: Digest = amounts.iter().map(|&amount| exactly(amount, &factor)).collect();
        let conversion = pair.conversion();
        let amounts = &amounts;
        works.push(Work::new(pair.name, expected.get(), move || {
            let mut digest = Digest::default();
            for &amount in black_box(amounts) {
                digest.add(conversion.convert(amount).expect("it was chosen to fit"));
            }
            digest.get()
        }));
    }
    measure(criterion, "conversion/convert", amounts.len(), works);
}

/// What the first packet between two assets pays after the rates have changed.
fn make(criterion: &mut Criterion) {
    const AMOUNT: u64 = 1_000_000_007;

    let works = [SHORT, LONG]
        .map(|pair| {
            let expected: Digest = [exactly(AMOUNT, &pair.factor())].into_iter().collect();
            Work::new(pair.name, expected.get(), move || {
                let conversion = black_box(&pair).conversion();
                [conversion.convert(AMOUNT).expect("it was chosen to fit")]
                    .into_iter()
                    .collect::<Digest>()
                    .get()
            })
        })
        .into();
    measure(criterion, "conversion/read and make", 1, works);
}
