//! The operator's process when the API server cannot be had: it says what is wrong and with which server, and waits.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// The bound on what should take a second: the operator asks once in five.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running operator, ended when it is dropped.
struct Operator {
    child: Child,
    lines: Receiver<String>,
}

impl Operator {
    fn start(server: &str) -> (Self, tempfile::NamedTempFile) {
        let kubeconfig = tempfile::NamedTempFile::new().expect("a file");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
             users: [{{name: u, user: {{token: t}}}}]\n"
        );
        std::fs::write(kubeconfig.path(), text).expect("written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast-operator"))
            .args(["run", "--http-address", "127.0.0.1:0"])
            .env("KUBECONFIG", kubeconfig.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let stdout = child.stdout.take().expect("stdout");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.take_while(|line| sender.send(line.clone()).is_ok()).for_each(drop);
        });
        (Self { child, lines }, kubeconfig)
    }

    /// Waits for a line that holds all of `words`.
    fn says(&mut self, words: &[&str]) {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if words.iter().all(|word| line.contains(word)) {
                return;
            }
            seen.push(line);
        }
        panic!("no line with {words:?} within {PATIENCE:?}, but {seen:#?}");
    }

    fn still_runs(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_api_server_that_is_not_there_is_named_and_waited_for() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let (mut operator, _kubeconfig) = Operator::start(&format!("http://{closed}"));
    operator.says(&["ERROR", &closed.to_string(), "cannot be asked", "refused", "check that it runs"]);
    assert!(operator.still_runs(), "it waits for the API server instead of ending at once");
}

#[test]
fn an_api_server_that_accepts_and_never_answers_is_named_and_waited_for() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("an address");
    let (mut operator, _kubeconfig) = Operator::start(&format!("http://{address}"));
    operator.says(&["ERROR", &address.to_string(), "does not answer within 5 s"]);
    assert!(operator.still_runs(), "it waits for the API server instead of ending at once");
}
