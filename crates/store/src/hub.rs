//! The client of the Hugging Face hub: list a repository, ask about a file, read a file from a byte on.
//!
//! Routes and headers are those of the hub's own Python client (`huggingface_hub`, `file_download.py` and
//! `utils/_http.py`): `GET /api/models/{repo}/revision/{revision}`, and `HEAD` and `GET` of
//! `/{repo}/resolve/{revision}/{file}` with `X-Linked-Size` and `X-Linked-Etag` (the SHA-256 of a file in large file
//! storage) on the redirect to the storage.

use crate::StoreError;
use crate::names::is_sha256;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;
use ureq::http::{HeaderMap, Response, Uri};
use ureq::{Agent, Body};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Bound on a repository listing; the largest ones on the hub are a few MiB.
const MAX_JSON_BYTES: u64 = 16 << 20;
/// Bound on redirects of one request.
const MAX_HOPS: usize = 6;

/// How to reach a hub.
#[derive(Clone)]
pub struct HubOptions {
    /// `https://host` or `http://host:port`, with no path needed after it.
    pub endpoint: String,
    /// Access token, sent to the endpoint's own origin and nowhere else.
    pub token: Option<String>,
    /// How often a transfer is tried again in a row without having moved on.
    pub retries: u32,
    /// Pause before the first of those tries; doubled for each one after it, up to 16 times this.
    pub retry_delay: Duration,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self { endpoint: DEFAULT_ENDPOINT.into(), token: None, retries: 5, retry_delay: Duration::from_millis(500) }
    }
}

/// A client for one hub.
pub struct Hub {
    agent: Agent,
    /// `scheme://host[:port]` of the endpoint.
    origin: String,
    options: HubOptions,
}

impl std::fmt::Debug for Hub {
    /// Leaves the token out.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("endpoint", &self.options.endpoint).finish_non_exhaustive()
    }
}

/// What the hub says about a repository.
pub(crate) struct Listing {
    /// The commit to read files from.
    pub(crate) revision: String,
    /// File names as the server sent them: unchecked.
    pub(crate) names: Vec<String>,
}

/// What the hub says about a file.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    /// Name inside the repository.
    pub(crate) name: String,
    /// Where to read it.
    pub(crate) url: String,
    /// Size of the whole file.
    pub(crate) bytes: u64,
    /// SHA-256 in lower case hexadecimal, for files in large file storage.
    pub(crate) sha256: Option<String>,
    /// Changes when the content does; empty if the hub sends none.
    pub(crate) etag: String,
}

#[derive(Deserialize)]
struct RepoInfo {
    sha: Option<String>,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Hub {
    /// A client with the given options. Proxies are taken from the usual environment variables, except for an
    /// endpoint on this machine.
    ///
    /// # Errors
    /// [`StoreError::BadEndpoint`] if the endpoint is not an `http` or `https` address.
    pub fn new(mut options: HubOptions) -> Result<Self, StoreError> {
        while options.endpoint.ends_with('/') {
            options.endpoint.pop();
        }
        let bad = |reason| StoreError::BadEndpoint { endpoint: options.endpoint.clone(), reason };
        let uri: Uri = options.endpoint.parse().map_err(|_| bad("it is not an address"))?;
        let origin = origin(&uri).ok_or_else(|| bad("it must start with http:// or https:// and a host"))?;
        if uri.query().is_some() || options.endpoint.contains('@') {
            return Err(bad("it must not carry a query or credentials"));
        }
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here, so that the token stays with the endpoint's origin.
            .max_redirects(0)
            .https_only(origin.starts_with("https:"))
            .user_agent(concat!("unicorn/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)));
        if uri.host().is_some_and(|h| matches!(h, "localhost" | "127.0.0.1" | "[::1]")) {
            config = config.proxy(None);
        }
        Ok(Self { agent: config.build().into(), origin, options })
    }

    /// A client as the environment says: `HF_ENDPOINT`, and the token in `HF_TOKEN` or in the file that the hub's own
    /// tools write (`$HF_HOME/token`, by default `~/.cache/huggingface/token`).
    ///
    /// # Errors
    /// [`StoreError::BadEndpoint`] if `HF_ENDPOINT` is not an address.
    pub fn from_env() -> Result<Self, StoreError> {
        let var = |name: &str| std::env::var(name).ok().map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let token_file = || {
            let home = match var("HF_HOME") {
                Some(home) => PathBuf::from(home),
                None => PathBuf::from(var("HOME")?).join(".cache/huggingface"),
            };
            let text = std::fs::read_to_string(home.join("token")).ok()?;
            Some(text.trim().to_string()).filter(|t| !t.is_empty())
        };
        let defaults = HubOptions::default();
        Self::new(HubOptions {
            endpoint: var("HF_ENDPOINT").unwrap_or(defaults.endpoint),
            token: var("HF_TOKEN").or_else(token_file),
            ..defaults
        })
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        &self.options.endpoint
    }

    /// How often to try again in a row without having moved on.
    pub(crate) fn retries(&self) -> u32 {
        self.options.retries
    }

    /// The pause before try number `failures` (from 1) is made again.
    pub(crate) fn delay(&self, failures: u32) -> Duration {
        self.options.retry_delay.saturating_mul(1 << failures.saturating_sub(1).min(4))
    }

    /// Lists the repository `repo` (`org/repo`) at its main revision.
    pub(crate) fn list(&self, repo: &str) -> Result<Listing, StoreError> {
        let url = format!("{}/api/models/{repo}/revision/main", self.endpoint());
        let mut response = self.retrying(|| self.send(&url, Ask::Get { from: 0 }))?;
        self.check_status(repo, &url, response.status().as_u16(), response.headers())?;
        let bad = |reason: String| StoreError::BadAnswer { url: url.clone(), reason };
        let body = response.body_mut().with_config().limit(MAX_JSON_BYTES).read_to_vec();
        let body = body.map_err(|e| bad(e.to_string()))?;
        let info: RepoInfo = serde_json::from_slice(&body).map_err(|e| bad(e.to_string()))?;
        // Without a commit the files of one pull could come from two; anything but a commit has no place in addresses.
        let commit = info.sha.filter(|s| s.len() == 40 && s.bytes().all(|b| b.is_ascii_hexdigit()));
        let revision = commit.ok_or_else(|| bad("it names no commit".into()))?;
        Ok(Listing { revision, names: info.siblings.into_iter().map(|s| s.rfilename).collect() })
    }

    /// Asks for size and digest of the file `name`.
    pub(crate) fn stat(&self, repo: &str, revision: &str, name: &str) -> Result<Remote, StoreError> {
        let url = format!("{}/{repo}/resolve/{revision}/{}", self.endpoint(), percent_encode(name));
        let response = self.retrying(|| self.send(&url, Ask::Head))?;
        let headers = response.headers();
        let status = response.status();
        if status.as_u16() == 404 && header(headers, "x-error-code") != Some("RepoNotFound") {
            let endpoint = self.options.endpoint.clone();
            return Err(StoreError::Gone { repo: repo.into(), file: name.into(), endpoint });
        }
        // A redirect to the storage is an answer to HEAD: it carries the linked headers.
        if !status.is_redirection() {
            self.check_status(repo, &url, status.as_u16(), headers)?;
        }
        let own_length = if status.is_redirection() { None } else { header(headers, "content-length") };
        let bytes = header(headers, "x-linked-size").or(own_length).and_then(|v| v.parse().ok());
        let bytes = bytes.ok_or_else(|| StoreError::BadAnswer {
            url: url.clone(),
            reason: "it states no size for the file".to_string(),
        })?;
        let linked = header(headers, "x-linked-etag").map(bare_etag);
        let sha256 = linked.filter(|e| is_sha256(e)).map(str::to_ascii_lowercase);
        let etag = linked.or_else(|| header(headers, "etag").map(bare_etag)).unwrap_or_default().to_string();
        Ok(Remote { name: name.into(), url, bytes, sha256, etag })
    }

    /// Opens `remote` for reading from byte `from` on. The answer may be 200 (whole), 206 (from there) or 416.
    pub(crate) fn open(&self, repo: &str, remote: &Remote, from: u64) -> Result<Response<Body>, StoreError> {
        let response = self.send(&remote.url, Ask::Get { from })?;
        if response.status().as_u16() != 416 {
            self.check_status(repo, &remote.url, response.status().as_u16(), response.headers())?;
        }
        Ok(response)
    }

    /// Sends a request and follows redirects: `GET` anywhere, `HEAD` within the endpoint's origin and only by relative
    /// addresses, as the redirect that leaves it is the answer.
    fn send(&self, url: &str, ask: Ask) -> Result<Response<Body>, StoreError> {
        let mut url = url.to_string();
        for _ in 0..MAX_HOPS {
            let response = self.send_once(&url, ask)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let bad = |reason: &str| StoreError::BadAnswer { url: without_query(&url), reason: reason.to_string() };
            let location = header(response.headers(), "location").ok_or_else(|| bad("a redirect to nowhere"))?;
            let target: Uri = location.parse().map_err(|_| bad("a redirect to something that is no address"))?;
            url = match (origin(&target), ask) {
                (Some(_), Ask::Head) => return Ok(response),
                (Some(_), Ask::Get { .. }) => location.to_string(),
                (None, _) if location.starts_with('/') && !location.starts_with("//") => {
                    let current: Uri = url.parse().map_err(|_| bad("an address that cannot be parsed"))?;
                    format!("{}{location}", origin(&current).unwrap_or_default())
                }
                (None, _) => return Err(bad("a redirect of an unknown kind")),
            };
        }
        Err(StoreError::BadAnswer { url: without_query(&url), reason: format!("more than {MAX_HOPS} redirects") })
    }

    fn send_once(&self, url: &str, ask: Ask) -> Result<Response<Body>, StoreError> {
        let request = match ask {
            Ask::Head => self.agent.head(url),
            Ask::Get { .. } => self.agent.get(url),
        };
        // Sizes and digests are those of the file, not of a compressed form of it.
        let mut request = request.header("accept-encoding", "identity");
        if let Ask::Get { from: from @ 1.. } = ask {
            request = request.header("range", format!("bytes={from}-"));
        }
        let same_origin = url.parse::<Uri>().ok().and_then(|u| origin(&u)).is_some_and(|o| o == self.origin);
        if let Some(token) = self.options.token.as_ref().filter(|_| same_origin) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|e| StoreError::Offline { url: without_query(url), reason: e.to_string() })
    }

    /// Repeats a request that failed on the way or by the server's momentary state.
    fn retrying(
        &self,
        mut request: impl FnMut() -> Result<Response<Body>, StoreError>,
    ) -> Result<Response<Body>, StoreError> {
        let mut failures = 0;
        loop {
            let result = request();
            let again = match &result {
                Ok(response) => is_momentary(response.status().as_u16()),
                // No connection at all: saying so now helps more than trying on for seconds.
                Err(_) => false,
            };
            failures += 1;
            if !again || failures > self.options.retries {
                return result;
            }
            std::thread::sleep(self.delay(failures));
        }
    }

    /// Turns a status that is no success into what it means. `X-Error-Code` is the hub's own reason.
    fn check_status(&self, repo: &str, url: &str, status: u16, headers: &HeaderMap) -> Result<(), StoreError> {
        let (repo, endpoint) = (repo.to_string(), self.options.endpoint.clone());
        match (status, header(headers, "x-error-code")) {
            (200..=299, _) => Ok(()),
            (401 | 403, Some("GatedRepo")) | (403, _) => Err(StoreError::Gated { repo, endpoint }),
            (401, _) => Err(StoreError::Unauthorised { repo, endpoint, token_sent: self.options.token.is_some() }),
            (404, _) => Err(StoreError::NoSuchRepo { repo, endpoint }),
            _ => Err(StoreError::HttpStatus { url: without_query(url), status }),
        }
    }
}

#[derive(Clone, Copy)]
enum Ask {
    Head,
    Get { from: u64 },
}

/// Statuses that may be gone in a moment.
pub(crate) fn is_momentary(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `scheme://host[:port]` in lower case, or nothing for a relative address.
fn origin(uri: &Uri) -> Option<String> {
    let scheme = uri.scheme_str().filter(|s| matches!(*s, "http" | "https"))?;
    Some(format!("{scheme}://{}", uri.authority()?).to_ascii_lowercase())
}

/// Addresses of the storage carry signatures in their query; those have no place in a message.
fn without_query(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_string()
}

/// `W/"abc"` and `"abc"` are `abc`.
fn bare_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Encodes a path for an address, keeping `/`.
fn percent_encode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for (endpoint, ok) in [
            ("https://host", true),
            ("http://127.0.0.1:8080/", true),
            ("https://host/mirror", true),
            ("host", false),
            ("ftp://host", false),
            ("https://user:secret@host", false),
            ("https://host?x=1", false),
            ("", false),
        ] {
            let hub = Hub::new(HubOptions { endpoint: endpoint.into(), ..HubOptions::default() });
            assert_eq!(hub.is_ok(), ok, "{endpoint:?}");
        }
    }

    #[test]
    fn the_token_is_not_printed() {
        let hub = Hub::new(HubOptions { token: Some("secret".into()), ..HubOptions::default() }).expect("valid");
        assert!(!format!("{hub:?}").contains("secret"));
    }

    #[test]
    fn small_text_functions() {
        assert_eq!(percent_encode("a b/ü#?.gguf"), "a%20b/%C3%BC%23%3F.gguf");
        assert_eq!(bare_etag("W/\"abc\""), "abc");
        assert_eq!(bare_etag("\"abc\""), "abc");
        assert_eq!(without_query("https://h/p?sig=1"), "https://h/p");
    }
}
