//! How tokens are picked, and where an answer ends.

use std::collections::HashMap;

use engine::SamplerOptions;
use serde_json::Value;

use crate::{error::ApiError, ids::random_u64, options::Limits, state::shortened};

/// Stop strings of a request at most; OpenAI takes 4.
const MOST_STOPS: usize = 16;
/// Bytes of a stop string at most: text is held back while it could be the beginning of one.
const LONGEST_STOP_BYTES: usize = 4096;
/// Entries of `logit_bias` at most: each answer has its own, and each is looked at for every token.
const MOST_BIASES: usize = 1024;
/// Alternatives a token at most.
pub(crate) const MOST_ALTERNATIVES: u32 = 20;

/// The fields that pick tokens, as all endpoints have them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampling<'a> {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) logit_bias: Option<&'a HashMap<String, f32>>,
    pub(crate) seed: Option<i64>,
}

impl Sampling<'_> {
    /// What the engine is told; `given` where a field is absent. OpenAI's ranges are checked here where they are
    /// narrower than the engine's own.
    pub(crate) fn options(&self, given: &SamplerOptions) -> Result<SamplerOptions, ApiError> {
        in_range("temperature", self.temperature, 0.0, 2.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        Ok(SamplerOptions {
            temperature: self.temperature.unwrap_or(given.temperature),
            // Both 0 and -1 are written for "all".
            top_k: match self.top_k {
                None => given.top_k,
                Some(-1) => 0,
                Some(k) => {
                    usize::try_from(k).map_err(|_| ApiError::value("top_k", "top_k must be at least 0, or -1."))?
                }
            },
            top_p: self.top_p.unwrap_or(given.top_p),
            min_p: self.min_p.unwrap_or(given.min_p),
            typical_p: self.typical_p.unwrap_or(given.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(given.repetition_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(given.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(given.presence_penalty),
            logit_bias: self.logit_bias.map_or(Ok(Vec::new()), biases)?,
            seed: self.seed.map_or_else(random_u64, |seed| seed as u64),
            ..given.clone()
        })
    }
}

fn in_range(name: &str, value: Option<f32>, least: f32, most: f32) -> Result<(), ApiError> {
    match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(ApiError::value(name, format!("{name} is {value}: it may be from {least} to {most}.")))
        }
        _ => Ok(()),
    }
}

/// Keys are ids, written as strings. -100 bans a token, as OpenAI's reference says.
fn biases(bias: &HashMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let one = |(key, value): (&String, &f32)| {
        let param = || format!("logit_bias.{}", shortened(key));
        let id: u32 =
            key.parse().map_err(|_| ApiError::value(param(), format!("'{}' is no token id.", shortened(key))))?;
        if !(-100.0..=100.0).contains(value) {
            return Err(ApiError::value(param(), format!("A bias of {value}: it may be from -100 to 100.")));
        }
        Ok((id, if *value <= -100.0 { f32::NEG_INFINITY } else { *value }))
    };
    if bias.len() > MOST_BIASES {
        let message = format!("logit_bias has {} entries: at most {MOST_BIASES}.", bias.len());
        return Err(ApiError::value("logit_bias", message));
    }
    let mut biases = bias.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    biases.sort_unstable_by_key(|(id, _)| *id);
    // As 1 and 01.
    match biases.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(ApiError::value("logit_bias", format!("logit_bias names the id {} twice.", pair[0].0))),
        None => Ok(biases),
    }
}

/// `stop`: nothing, a string, or up to 16.
pub(crate) fn stops(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let stops = strings(value, "stop")?;
    if stops.len() > MOST_STOPS {
        return Err(ApiError::value("stop", format!("{} stop strings: at most {MOST_STOPS}.", stops.len())));
    }
    match stops.iter().position(|stop| stop.is_empty() || stop.len() > LONGEST_STOP_BYTES) {
        Some(at) => {
            let message = format!("Stop string {at} is empty, or longer than {LONGEST_STOP_BYTES} bytes.");
            Err(ApiError::value(format!("stop[{at}]"), message))
        }
        None => Ok(stops),
    }
}

/// Nothing, a string, or several.
fn strings(value: Option<&Value>, name: &str) -> Result<Vec<String>, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(at, item)| {
                let text = item.as_str().map(str::to_owned);
                text.ok_or_else(|| ApiError::wrong_type(format!("{name}[{at}]"), "a string"))
            })
            .collect(),
        Some(_) => Err(ApiError::wrong_type(name, "a string or an array of strings")),
    }
}

/// The number of answers.
pub(crate) fn choices(n: Option<u32>, limits: &Limits) -> Result<usize, ApiError> {
    let n = n.unwrap_or(1) as usize;
    if (1..=limits.choices).contains(&n) {
        return Ok(n);
    }
    Err(ApiError::value("n", format!("n is {n}: it may be from 1 to {}.", limits.choices)))
}

/// The tokens of an answer at most, from the field `name`. -1 is what some clients write for no limit of their own.
pub(crate) fn answer_tokens(asked: Option<i64>, name: &str, limits: &Limits) -> Result<Option<usize>, ApiError> {
    let asked = match asked {
        None | Some(-1) => return Ok(limits.answer_tokens),
        Some(asked) => usize::try_from(asked).unwrap_or(0),
    };
    if asked == 0 {
        return Err(ApiError::value(name, format!("{name} must be at least 1.")));
    }
    match limits.answer_tokens {
        Some(limit) if asked > limit => {
            Err(ApiError::value(name, format!("{name} is {asked}: this server allows {limit}.")))
        }
        _ => Ok(Some(asked)),
    }
}

/// Alternatives with each token.
pub(crate) fn alternatives(asked: u32, name: &str) -> Result<usize, ApiError> {
    if asked <= MOST_ALTERNATIVES {
        return Ok(asked as usize);
    }
    Err(ApiError::value(name, format!("{name} is {asked}: it may be from 0 to {MOST_ALTERNATIVES}.")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::options::ServerOptions;

    fn servers() -> SamplerOptions {
        ServerOptions::default().sampler
    }

    #[test]
    fn stop_strings() {
        for (value, want) in [
            (json!(null), Ok(vec![])),
            (json!("a"), Ok(vec!["a"])),
            (json!(["a", "b"]), Ok(vec!["a", "b"])),
            (json!([]), Ok(vec![])),
            (json!(3), Err("stop")),
            (json!(["a", 3]), Err("stop[1]")),
            (json!([""]), Err("stop[0]")),
            (json!(vec!["x"; 17]), Err("stop")),
        ] {
            let got = stops(Some(&value));
            match want {
                Ok(want) => assert_eq!(got.unwrap(), want, "{value}"),
                Err(param) => assert_eq!(got.unwrap_err().param.as_deref(), Some(param), "{value}"),
            }
        }
    }

    #[test]
    fn tokens_of_an_answer() {
        let free = Limits::default();
        let bound = Limits { answer_tokens: Some(100), ..Limits::default() };
        for (asked, limits, want) in [
            (None, &free, Some(None)),
            (Some(-1), &free, Some(None)),
            (Some(7), &free, Some(Some(7))),
            (None, &bound, Some(Some(100))),
            (Some(-1), &bound, Some(Some(100))),
            (Some(100), &bound, Some(Some(100))),
            (Some(101), &bound, None),
            (Some(0), &free, None),
            (Some(-2), &free, None),
        ] {
            assert_eq!(answer_tokens(asked, "max_tokens", limits).ok(), want, "{asked:?}");
        }
    }

    #[test]
    fn biases_are_ids_and_numbers() {
        for (bias, want) in [
            (json!({"5": 1.5, "3": -100}), Ok(vec![(3, f32::NEG_INFINITY), (5, 1.5)])),
            (json!({}), Ok(vec![])),
            (json!({"x": 1}), Err("logit_bias.x")),
            (json!({"-1": 1}), Err("logit_bias.-1")),
            (json!({"1": 101}), Err("logit_bias.1")),
            (json!({"1": 1, "01": 1}), Err("logit_bias")),
            (Value::Object((0..1025).map(|id| (id.to_string(), 1.into())).collect()), Err("logit_bias")),
        ] {
            let bias: HashMap<String, f32> = serde_json::from_value(bias).unwrap();
            let got = Sampling { logit_bias: Some(&bias), ..Sampling::default() }.options(&servers());
            match want {
                Ok(want) => assert_eq!(got.unwrap().logit_bias, want),
                Err(param) => assert_eq!(got.unwrap_err().param.as_deref(), Some(param)),
            }
        }
    }

    #[test]
    fn what_a_request_does_not_say_is_the_servers() {
        let own = SamplerOptions { temperature: 0.6, top_k: 20, repetition_penalty: 1.1, ..servers() };
        let silent = Sampling::default().options(&own).unwrap();
        assert_eq!((silent.temperature, silent.top_k, silent.repetition_penalty), (0.6, 20, 1.1));
        let wanted = Sampling { temperature: Some(1.5), top_k: Some(0), ..Sampling::default() }.options(&own).unwrap();
        assert_eq!((wanted.temperature, wanted.top_k, wanted.repetition_penalty), (1.5, 0, 1.1));
    }

    #[test]
    fn the_temperature_is_1_and_seeds_are_drawn() {
        let drawn = || Sampling::default().options(&servers()).unwrap();
        assert_eq!(drawn().temperature, 1.0);
        assert_ne!(drawn().seed, drawn().seed);
        let given = Sampling { seed: Some(-1), top_k: Some(-1), ..Sampling::default() }.options(&servers()).unwrap();
        assert_eq!((given.seed, given.top_k), (u64::MAX, 0));
        for sampling in [
            Sampling { temperature: Some(2.5), ..Sampling::default() },
            Sampling { temperature: Some(f32::NAN), ..Sampling::default() },
            Sampling { top_k: Some(-2), ..Sampling::default() },
            Sampling { presence_penalty: Some(-3.0), ..Sampling::default() },
        ] {
            assert!(sampling.options(&servers()).is_err(), "{sampling:?}");
        }
    }
}
