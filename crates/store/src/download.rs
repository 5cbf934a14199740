//! One file from the hub to disk: resumed, bounded, checked.

use crate::StoreError;
use crate::hub::{Hub, Remote, header, is_momentary};
use crate::part::{BUFFER_BYTES, Part, is_current};
use crate::pull::Progress;
use std::fs;
use std::io::Read;
use std::path::Path;

/// How one request ended.
enum End {
    /// All bytes are there.
    Whole,
    /// It stopped early; another request may go on.
    Cut(String),
}

/// Fetches `remote` of `repo` into `dest`, whose directory is made. Returns the bytes that came over the network: 0 if
/// `dest` is the wanted file already.
pub(crate) fn fetch(
    hub: &Hub,
    repo: &str,
    remote: &Remote,
    dest: &Path,
    progress: &mut dyn Progress,
) -> Result<u64, StoreError> {
    progress.start(&remote.name, remote.bytes);
    if is_current(remote, dest)? {
        progress.advance(remote.bytes);
        progress.finish();
        return Ok(0);
    }
    if let Some(dir) = dest.parent() {
        fs::create_dir_all(dir).map_err(|e| StoreError::io("create", dir, e))?;
    }
    let part = Part::open(remote, dest)?;
    progress.advance(part.len());
    let mut transfer = Transfer { hub, repo, remote, part, progress, received: 0 };
    transfer.run()?;
    let Transfer { part, received, .. } = transfer;
    part.finish(remote, dest)?;
    progress.finish();
    Ok(received)
}

struct Transfer<'a> {
    hub: &'a Hub,
    repo: &'a str,
    remote: &'a Remote,
    part: Part,
    progress: &'a mut dyn Progress,
    received: u64,
}

impl Transfer<'_> {
    /// Requests until all bytes are there. A try that moved on makes the next one the first again.
    fn run(&mut self) -> Result<(), StoreError> {
        let mut failures = 0;
        let mut furthest = self.part.len();
        while self.part.len() < self.remote.bytes {
            let End::Cut(reason) = self.request()? else { break };
            if self.part.len() > furthest {
                furthest = self.part.len();
                failures = 0;
            }
            failures += 1;
            if failures > self.hub.retries() {
                let (have, expected) = (self.part.len(), self.remote.bytes);
                return Err(StoreError::Interrupted { file: self.remote.name.clone(), have, expected, reason });
            }
            std::thread::sleep(self.hub.delay(failures));
        }
        Ok(())
    }

    /// One request for what is missing.
    fn request(&mut self) -> Result<End, StoreError> {
        let mut response = match self.hub.open(self.repo, self.remote, self.part.len()) {
            Ok(response) => response,
            Err(StoreError::Offline { reason, .. }) => return Ok(End::Cut(reason)),
            Err(StoreError::HttpStatus { status, .. }) if is_momentary(status) => {
                return Ok(End::Cut(format!("HTTP {status}")));
            }
            Err(error) => return Err(error),
        };
        let status = response.status().as_u16();
        match status {
            206 => self.check_range(header(response.headers(), "content-range"))?,
            // Nothing beyond our bytes: they cannot be the start of this file after all.
            416 => {
                self.restart()?;
                return Ok(End::Cut("HTTP 416".into()));
            }
            // The whole file, whether asked for or not.
            _ if self.part.len() > 0 => self.restart()?,
            _ => {}
        }
        self.copy(&mut response.body_mut().as_reader())
    }

    /// Reads `body` to its end, at most up to the stated size.
    fn copy(&mut self, body: &mut dyn Read) -> Result<End, StoreError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let n = match body.read(&mut buffer) {
                Ok(n) => n,
                Err(e) => return Ok(End::Cut(e.to_string())),
            };
            let missing = self.remote.bytes - self.part.len();
            if n as u64 > missing {
                self.part.clear()?;
                return Err(self.bad_answer("it sends more bytes than it states"));
            }
            if n == 0 {
                return Ok(if missing == 0 { End::Whole } else { End::Cut("the connection was closed".into()) });
            }
            self.part.write(&buffer[..n])?;
            self.received += n as u64;
            self.progress.advance(n as u64);
        }
    }

    /// `bytes START-END/TOTAL` must be what was asked for: otherwise the bytes would land in the wrong place.
    fn check_range(&self, range: Option<&str>) -> Result<(), StoreError> {
        let parsed = range.and_then(|r| {
            let (span, total) = r.trim().strip_prefix("bytes ")?.split_once('/')?;
            let (start, _) = span.split_once('-')?;
            Some((start.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
        });
        if parsed == Some((self.part.len(), self.remote.bytes)) {
            return Ok(());
        }
        Err(self.bad_answer("its Content-Range is not the range that was asked for"))
    }

    fn restart(&mut self) -> Result<(), StoreError> {
        self.part.clear()?;
        self.progress.start(&self.remote.name, self.remote.bytes);
        Ok(())
    }

    fn bad_answer(&self, reason: &str) -> StoreError {
        StoreError::BadAnswer { url: self.remote.url.clone(), reason: reason.into() }
    }
}
