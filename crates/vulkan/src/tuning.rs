//! Variants of a kernel that compute the same: how many rows a subgroup takes, how large a tile is. A rule gives one by
//! the shape and the device; what was measured on the device may take its place. Only variants that are valid for the
//! shape are ever taken, whatever a file says.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How a kernel divides its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Variant {
    /// Of a product with few rows of activations.
    Rows {
        /// Rows of the weight that a subgroup takes.
        rows: u32,
        /// Blocks of a row that an invocation loads before it uses the first.
        ahead: u32,
        /// Subgroups of a workgroup.
        subgroups: u32,
        /// Subgroups of a processor among which all rows are divided; 0: each takes its rows and ends.
        resident: u32,
    },
    /// Of a product on matrix units.
    Tile {
        /// Rows of the weight and rows of activations of a workgroup.
        tile: (u32, u32),
        /// Those of a subgroup.
        share: (u32, u32),
    },
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variant::Rows { rows, ahead, subgroups, resident } => {
                write!(f, "rows {rows} ahead {ahead} subgroups {subgroups} resident {resident}")
            }
            Variant::Tile { tile: (m, n), share: (own_m, own_n) } => write!(f, "tile {m} {n} share {own_m} {own_n}"),
        }
    }
}

/// A text that names no variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a variant of a kernel")]
pub struct NoVariant;

impl FromStr for Variant {
    type Err = NoVariant;

    fn from_str(text: &str) -> Result<Variant, NoVariant> {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |at: usize| words[at].parse::<u32>().map_err(|_| NoVariant);
        match words[..] {
            ["rows", _, "ahead", _, "subgroups", _, "resident", _] => {
                Ok(Variant::Rows { rows: number(1)?, ahead: number(3)?, subgroups: number(5)?, resident: number(7)? })
            }
            ["tile", _, _, "share", _, _] => {
                Ok(Variant::Tile { tile: (number(1)?, number(2)?), share: (number(4)?, number(5)?) })
            }
            _ => Err(NoVariant),
        }
    }
}

/// Variants by kernel, as they were chosen: a kernel's name has its types, its shape, and what it does beside.
pub type Choices = BTreeMap<String, Variant>;

/// What is chosen on a device.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    choices: Choices,
    /// The place of the variant that every kernel takes now, among its own; the rule's is the first.
    trial: Option<usize>,
    /// The most variants that a kernel had since trials began.
    most: usize,
    /// Counts what was set: recordings of another number are void.
    generation: u64,
}

impl Tuning {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    pub(crate) fn choices(&self) -> Choices {
        self.state().choices.clone()
    }

    pub(crate) fn set(&self, choices: Choices) {
        let mut state = self.state();
        (state.choices, state.trial) = (choices, None);
        state.generation += 1;
    }

    pub(crate) fn begin_trial(&self, place: Option<usize>) {
        let mut state = self.state();
        if state.trial.is_none() {
            state.most = 0;
        }
        state.trial = place;
        state.generation += 1;
    }

    pub(crate) fn most(&self) -> usize {
        self.state().most
    }

    /// The variant of a kernel: what was chosen, where it is among `valid`, else what the rule says.
    pub(crate) fn choose(&self, kernel: &str, rule: Variant, valid: &[Variant]) -> Variant {
        let mut state = self.state();
        match state.trial {
            Some(place) => {
                let mut all = vec![rule];
                all.extend(valid.iter().filter(|variant| **variant != rule));
                state.most = state.most.max(all.len());
                all.get(place).copied().unwrap_or(rule)
            }
            None => state.choices.get(kernel).copied().filter(|chosen| valid.contains(chosen)).unwrap_or(rule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: u32, ahead: u32) -> Variant {
        Variant::Rows { rows, ahead, subgroups: 4, resident: 0 }
    }

    #[test]
    fn variants_are_written_and_read() {
        for variant in [rows(2, 1), Variant::Tile { tile: (128, 64), share: (32, 16) }] {
            assert_eq!(variant.to_string().parse(), Ok(variant));
        }
        for text in [
            "",
            "rows",
            "rows 1 ahead 2",
            "rows 1 ahead -2 subgroups 3 resident 0",
            "tile 1 2 share 3",
            "tile 1 2 3 4 5 6",
        ] {
            assert_eq!(text.parse::<Variant>(), Err(NoVariant), "{text:?}");
        }
    }

    #[test]
    fn what_was_chosen_is_taken_where_it_is_valid() {
        let tuning = Tuning::default();
        let (rule, valid) = (rows(4, 1), [rows(1, 1), rows(2, 1), rows(4, 1)]);
        assert_eq!(tuning.choose("a", rule, &valid), rule);
        let before = tuning.generation();
        tuning.set(Choices::from([("a".to_owned(), rows(2, 1)), ("b".to_owned(), rows(1_000_000, 7))]));
        assert_ne!(tuning.generation(), before);
        assert_eq!(tuning.choose("a", rule, &valid), rows(2, 1));
        assert_eq!(tuning.choose("b", rule, &valid), rule, "no such variant of this kernel");
        assert_eq!(tuning.choose("c", rule, &valid), rule, "not chosen");
    }

    #[test]
    fn trials_go_through_all_beginning_with_the_rule() {
        let tuning = Tuning::default();
        let (rule, valid) = (rows(2, 1), [rows(1, 1), rows(2, 1), rows(4, 1)]);
        let mut met = Vec::new();
        for place in 0..4 {
            tuning.begin_trial(Some(place));
            met.push(tuning.choose("a", rule, &valid));
        }
        assert_eq!(met, [rule, rows(1, 1), rows(4, 1), rule]);
        assert_eq!(tuning.most(), 3);
        tuning.begin_trial(None);
        assert_eq!(tuning.choose("a", rule, &valid), rule);
    }
}
