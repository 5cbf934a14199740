//! The commands of a conversation.

use std::path::Path;

use super::conversation::Conversation;
use crate::output::{note, one_line};

/// What `/help` prints.
const HELP: &str = "\
/help           this list
/stats          the model, the room in the context, and what the last answer cost
/system TEXT    tells the model TEXT before the conversation; without TEXT, shows it
/clear          begins a new conversation; the system message stays
/save FILE      writes the conversation as JSON, which `unicorn template --messages` reads
/quit           leaves, as Ctrl-D does
A line that ends in \\ goes on in the next. \"\"\" begins and ends a text of several lines.
//text sends /text.";

/// A command, parsed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slash {
    Help,
    Stats,
    System(Option<String>),
    Clear,
    Save(String),
    Quit,
}

/// Whether the conversation goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    GoOn,
    Quit,
}

impl Slash {
    /// The command that a message is; `None` where it is for the model.
    pub(super) fn parse(text: &str) -> Option<Result<Slash, String>> {
        let line = text.strip_prefix('/')?;
        if line.starts_with('/') {
            return None;
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let alone = |slash| if rest.is_empty() { Ok(slash) } else { Err(format!("/{name} takes nothing after it")) };
        Some(match name {
            "help" | "?" => alone(Slash::Help),
            "stats" => alone(Slash::Stats),
            "clear" => alone(Slash::Clear),
            "quit" | "exit" | "bye" => alone(Slash::Quit),
            "system" => Ok(Slash::System((!rest.is_empty()).then(|| rest.to_owned()))),
            "save" if rest.is_empty() => Err("/save wants the name of a file".to_owned()),
            "save" => Ok(Slash::Save(rest.to_owned())),
            _ => Err(format!("unknown command /{}", one_line(name))),
        })
    }

    /// Does it.
    pub(super) fn execute(self, conversation: &mut Conversation) -> anyhow::Result<After> {
        match self {
            Slash::Help => note(HELP),
            Slash::Stats => note(conversation.stats()),
            Slash::System(None) => match conversation.system() {
                Some(text) => note(format_args!("system: {}", crate::output::for_terminal(text))),
                None => note("no system message; the template may have one of its own"),
            },
            Slash::System(Some(text)) => {
                conversation.set_system(&text)?;
                note("system message set");
            }
            Slash::Clear => {
                conversation.clear();
                note("a new conversation");
            }
            Slash::Save(file) => {
                let messages = conversation.save(Path::new(&file))?;
                note(format_args!("{messages} messages written to {}", one_line(&file)));
            }
            Slash::Quit => return Ok(After::Quit),
        }
        Ok(After::GoOn)
    }
}

/// A message for the model: of two slashes at its beginning one is meant.
pub(super) fn unescaped(text: &str) -> &str {
    if text.starts_with("//") { &text[1..] } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_messages() {
        for (text, want) in [
            ("hello", None),
            ("1/2", None),
            ("//etc is a path", None),
            ("/help", Some(Some(Slash::Help))),
            ("/quit", Some(Some(Slash::Quit))),
            ("/system", Some(Some(Slash::System(None)))),
            ("/system  Be brief. ", Some(Some(Slash::System(Some("Be brief.".to_owned()))))),
            ("/system a\nb", Some(Some(Slash::System(Some("a\nb".to_owned()))))),
            ("/save a b.json", Some(Some(Slash::Save("a b.json".to_owned())))),
            ("/save", Some(None)),
            ("/clear all", Some(None)),
            ("/frobnicate", Some(None)),
            ("/", Some(None)),
        ] {
            assert_eq!(Slash::parse(text).map(Result::ok), want, "{text:?}");
        }
        assert_eq!(unescaped("//etc"), "/etc");
        assert_eq!(unescaped("a//b"), "a//b");
    }
}
