//! How long kernels take, estimated before they run, so that a list of them can be cut into submits of bounded length.
//!
//! A driver resets a device whose submit does not end in time (amdgpu: ten seconds of compute by default, less in some
//! kernels), and while a submit runs a shared GPU may draw nothing. The estimate of a kernel is the longer of its bytes
//! over a bandwidth and its operations over a rate. Both are guessed low at first, by the kind of device; what submits
//! are then measured to take corrects the guess, by one factor for each shader. A kernel that is too long by itself is
//! divided into runs of its workgroups.

use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{capabilities::Kind, kernels::Dispatch, shaders::Shader};

/// What is added for each kernel: its start, and the barrier before it.
const START_S: f64 = 5e-6;

/// What lasts less says more about starting and waiting than about its kernels.
const LEAST_S: f64 = 2e-3;

/// A measurement corrects by no more than this factor: it may have waited for another program.
const MOST_CORRECTION: f64 = 16.0;

/// How far a longest submit may be above the bound, or above what another cut would give, before it is cut anew.
const SLACK: f64 = 1.5;

/// How long a submit may last by default. An integrated GPU draws the screen as well. `None`: submits are not cut.
pub(crate) fn default_bound(kind: Kind) -> Option<Duration> {
    match kind {
        Kind::Integrated => Some(Duration::from_millis(100)),
        Kind::Discrete | Kind::Virtual => Some(Duration::from_secs(1)),
        Kind::Software => None,
    }
}

/// Bytes a second, operations a second on matrix units, and operations a second elsewhere.
type Guess = [f64; 3];

/// Below what any device of its kind was measured to reach; of an integrated one a third of what is published for a
/// Radeon 780M.
fn guess(kind: Kind) -> Guess {
    match kind {
        Kind::Integrated => [30e9, 3e12, 0.4e12],
        Kind::Discrete | Kind::Virtual => [150e9, 10e12, 2e12],
        Kind::Software => [2e9, 5e9, 5e9],
    }
}

/// By shader, what the guess is to be multiplied by.
type Factors = [f64; Shader::COUNT];

/// What is known of a kernel before it runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    shader: Shader,
    /// By the first guess.
    seconds: f64,
    /// Runs of workgroups that it may be divided into.
    divisible: u32,
}

/// A kernel of a submit, or the workgroups of it whose second number lies in a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its place in the list.
    pub(crate) index: usize,
    pub(crate) rows: Option<Range<u32>>,
}

impl Piece {
    /// Whether it ends its kernel.
    pub(crate) fn is_last(&self, dispatch: &Dispatch) -> bool {
        self.rows.as_ref().is_none_or(|rows| rows.end == dispatch.groups[1])
    }
}

/// How fast a device runs kernels.
#[derive(Debug)]
pub(crate) struct Pace {
    guess: Guess,
    bound: Option<f64>,
    factors: Mutex<Factors>,
}

impl Pace {
    /// Of a device, by guess. `bound` is how long a submit may last; `None` takes the kind's, zero sets none.
    pub(crate) fn new(kind: Kind, bound: Option<Duration>) -> Pace {
        let bound = bound.or(default_bound(kind)).filter(|bound| !bound.is_zero()).map(|bound| bound.as_secs_f64());
        Pace { guess: guess(kind), bound, factors: Mutex::new([1.0; Shader::COUNT]) }
    }

    /// Whether submits are bounded.
    pub(crate) fn is_bounded(&self) -> bool {
        self.bound.is_some()
    }

    fn factors(&self) -> Factors {
        *self.factors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a kernel costs.
    pub(crate) fn cost(&self, dispatch: &Dispatch) -> Cost {
        let [bytes_per_s, matrix_ops_per_s, ops_per_s] = self.guess;
        let rate = if dispatch.shader.is_matrix() { matrix_ops_per_s } else { ops_per_s };
        let seconds = (dispatch.work as f64 / rate).max(dispatch.bytes as f64 / bytes_per_s);
        // These know no number of workgroups in the second dimension, so that a part of them is as good as all.
        let by_rows = [Shader::Gemm, Shader::GemmMatrix, Shader::Attention, Shader::AttentionMatrix];
        let divisible = if by_rows.contains(&dispatch.shader) { dispatch.groups[1].max(1) } else { 1 };
        Cost { shader: dispatch.shader, seconds: START_S + seconds, divisible }
    }

    /// Cuts a list into submits, each below the bound by estimate where it is more than one kernel or a run of
    /// workgroups that cannot be divided.
    pub(crate) fn cut(&self, costs: &[Cost]) -> Vec<Vec<Piece>> {
        let factors = self.factors();
        let bound = self.bound.unwrap_or(f64::INFINITY);
        let mut submits: Vec<Vec<Piece>> = vec![vec![]];
        let mut used = 0.0;
        for (index, cost) in costs.iter().enumerate() {
            let seconds = estimate(&factors, cost);
            // Workgroups of a piece, in the second dimension: as many as stay below the bound, one at least.
            let all = cost.divisible;
            let most = if seconds > bound { ((f64::from(all) * bound / seconds) as u32).max(1) } else { all };
            for first in (0..all).step_by(most as usize) {
                let rows = first..(first + most).min(all);
                let own = seconds * rows.len() as f64 / f64::from(all);
                if used > 0.0 && used + own > bound {
                    submits.push(vec![]);
                    used = 0.0;
                }
                used += own;
                let rows = (rows.len() as u32 != all).then_some(rows);
                submits.last_mut().expect("begins with one").push(Piece { index, rows });
            }
        }
        submits
    }

    /// Takes note of what submits lasted, one after another. Returns whether one was far from its estimate.
    pub(crate) fn learn(&self, costs: &[Cost], submits: &[Vec<Piece>], lasted: &[Duration]) -> bool {
        let mut is_news = false;
        let mut factors = self.factors.lock().unwrap_or_else(PoisonError::into_inner);
        for (submit, lasted) in submits.iter().zip(lasted) {
            let lasted = lasted.as_secs_f64();
            let estimated = seconds_of(&factors, costs, submit);
            if lasted < LEAST_S && estimated < LEAST_S {
                continue;
            }
            let ratio = (lasted / estimated).clamp(1.0 / MOST_CORRECTION, MOST_CORRECTION);
            is_news |= !(1.0 / SLACK..=SLACK).contains(&ratio);
            // What is slower than thought counts at once, what is faster little by little: of the two errors a submit
            // that is too long is the worse.
            let weight = if ratio > 1.0 { 1.0 } else { 0.25 };
            let mut seconds = [0.0; Shader::COUNT];
            for piece in submit {
                seconds[costs[piece.index].shader as usize] += piece_seconds(&factors, costs, piece);
            }
            for (factor, seconds) in factors.iter_mut().zip(seconds).filter(|(_, seconds)| *seconds > 0.0) {
                *factor *= ratio.powf(weight * seconds / estimated);
            }
        }
        is_news
    }

    /// Whether a list that was cut earlier should be cut anew: a submit is too long by what is known now, or there are
    /// many more than are needed.
    pub(crate) fn is_outdated(&self, costs: &[Cost], submits: &[Vec<Piece>]) -> bool {
        let Some(bound) = self.bound else { return false };
        let fresh = self.cut(costs);
        let factors = self.factors();
        let longest = |submits: &[Vec<Piece>]| {
            submits.iter().map(|submit| seconds_of(&factors, costs, submit)).fold(0.0, f64::max)
        };
        longest(submits) > SLACK * longest(&fresh).max(bound) || 2 * fresh.len() < submits.len()
    }
}

fn estimate(factors: &Factors, cost: &Cost) -> f64 {
    cost.seconds * factors[cost.shader as usize]
}

fn piece_seconds(factors: &Factors, costs: &[Cost], piece: &Piece) -> f64 {
    let cost = &costs[piece.index];
    let share = piece.rows.as_ref().map_or(1.0, |rows| rows.len() as f64 / f64::from(cost.divisible));
    estimate(factors, cost) * share
}

fn seconds_of(factors: &Factors, costs: &[Cost], submit: &[Piece]) -> f64 {
    submit.iter().map(|piece| piece_seconds(factors, costs, piece)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(bound_s: f64) -> Pace {
        Pace::new(Kind::Integrated, Some(Duration::from_secs_f64(bound_s)))
    }

    fn dispatch(shader: Shader, gigaops: f64, groups: u32) -> Dispatch {
        let mut dispatch = Dispatch::new(shader, vec![], &0u32, [1, groups, 1]);
        dispatch.work = (gigaops * 1e9) as u64;
        dispatch
    }

    /// A prompt of 512 tokens through the layers of a 27B, in floats: 27 Tops.
    fn prompt(pace: &Pace) -> Vec<Cost> {
        let layer = [
            dispatch(Shader::Prepare, 0.0, 1),
            dispatch(Shader::Gemm, 45.0, 8),
            dispatch(Shader::Attention, 4.3, 16),
            dispatch(Shader::Gemm, 22.5, 8),
            dispatch(Shader::Gemm, 237.0, 8),
            dispatch(Shader::Elementwise, 0.0, 1),
            dispatch(Shader::Gemm, 118.0, 8),
        ];
        (0..62).flat_map(|_| layer.iter().map(|dispatch| pace.cost(dispatch))).collect()
    }

    fn longest(pace: &Pace, costs: &[Cost], submits: &[Vec<Piece>]) -> f64 {
        submits.iter().map(|submit| seconds_of(&pace.factors(), costs, submit)).fold(0.0, f64::max)
    }

    #[test]
    fn submits_stay_below_the_bound() {
        for bound in [0.1, 0.2, 1.0] {
            let pace = pace(bound);
            let costs = prompt(&pace);
            let submits = pace.cut(&costs);
            let most = longest(&pace, &costs, &submits);
            assert!(most <= bound * 1.0001, "{bound}: {most}");
            let total: f64 = costs.iter().map(|cost| cost.seconds).sum();
            assert!((submits.len() as f64) < 2.5 * total / bound, "{} submits of {total} s", submits.len());
            // Every kernel once, in order, and whole.
            let mut next = (0, 0);
            for piece in submits.iter().flatten() {
                let all = costs[piece.index].divisible;
                let rows = piece.rows.clone().unwrap_or(0..all);
                assert_eq!((piece.index, rows.start), next);
                assert!(rows.start < rows.end);
                next = if rows.end == all { (piece.index + 1, 0) } else { (piece.index, rows.end) };
            }
            assert_eq!(next, (costs.len(), 0));
        }
    }

    #[test]
    fn what_cannot_be_divided_is_a_submit_of_its_own() {
        let pace = pace(0.1);
        let costs: Vec<Cost> = [(Shader::Gemv, 400.0, 4), (Shader::Gemm, 400.0, 2), (Shader::Merge, 0.0, 1)]
            .map(|(shader, work, groups)| pace.cost(&dispatch(shader, work, groups)))
            .to_vec();
        let piece = |index: usize, rows: Option<Range<u32>>| Piece { index, rows };
        let want = [vec![piece(0, None)], vec![piece(1, Some(0..1))], vec![piece(1, Some(1..2))], vec![piece(2, None)]];
        assert_eq!(pace.cut(&costs), want);
        let unbounded = Pace::new(Kind::Integrated, Some(Duration::ZERO));
        assert!(!unbounded.is_bounded());
        assert_eq!(unbounded.cut(&costs).len(), 1);
        assert_eq!(pace.cut(&[]), [vec![]]);
    }

    /// Devices that are faster or slower than guessed, in all kernels or in some.
    #[test]
    fn measured_times_correct_the_guess() {
        for (products, attention) in [(1.0, 1.0), (6.0, 6.0), (0.1, 0.1), (3.0, 30.0), (0.2, 8.0)] {
            let pace = pace(0.1);
            let costs = prompt(&pace);
            let mut truth = [1.0; Shader::COUNT];
            (truth[Shader::Gemm as usize], truth[Shader::Attention as usize]) = (products, attention);
            let lasted = |submits: &[Vec<Piece>]| -> Vec<Duration> {
                let seconds = submits.iter().map(|submit| seconds_of(&truth, &costs, submit));
                seconds.map(Duration::from_secs_f64).collect()
            };
            let mut submits = pace.cut(&costs);
            let mut recordings = 1;
            for _ in 0..8 {
                if pace.learn(&costs, &submits, &lasted(&submits)) && pace.is_outdated(&costs, &submits) {
                    submits = pace.cut(&costs);
                    recordings += 1;
                }
            }
            let worst = lasted(&submits).into_iter().max().unwrap().as_secs_f64();
            // A product of eight rows of workgroups cannot be cut into more.
            let least = 237.0 / 400.0 * products / 8.0;
            let most = (2.0 * 0.1f64).max(1.1 * SLACK * least);
            assert!(worst < most, "{products}, {attention}: {worst} s, recorded {recordings} times");
            assert!(recordings <= 4, "{products}, {attention}: recorded {recordings} times");
            let total: f64 = lasted(&submits).iter().map(Duration::as_secs_f64).sum();
            assert!(submits.len() as f64 <= 4.0 * (total / 0.1).max(1.0), "{products}, {attention}: {}", submits.len());
        }
    }

    #[test]
    fn short_submits_teach_nothing() {
        let pace = pace(0.1);
        let costs = vec![pace.cost(&dispatch(Shader::Gemv, 0.1, 1))];
        let submits = pace.cut(&costs);
        assert!(!pace.learn(&costs, &submits, &[Duration::from_micros(900)]));
        assert_eq!(pace.factors(), [1.0; Shader::COUNT]);
        assert!(pace.learn(&costs, &submits, &[Duration::from_millis(50)]));
        assert!(pace.factors()[Shader::Gemv as usize] > 10.0);
    }
}
