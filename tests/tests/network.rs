//! What sandboxes with a network reach, and what they do not: a small world stands beside the machine, in a network
//! namespace of its own.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::{fs, io};

use ampoule_client::types::{EndingKind, JobRequest, JobState};
use ampoule_tests::builds::{build, check_built, said};
use ampoule_tests::host::Other;
use ampoule_tests::service::{kind, shell, stderr, stdout};
use ampoule_tests::{Options, Service, host};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// Answers HTTP on every address of its namespace with the client's address, and every question for a name with its
/// first address.
const WORLD: &str = r#"
import http.server, socket, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("", 53))
server = http.server.ThreadingHTTPServer(("", 80), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
print("ready", flush=True)
while True:
    question, client = names.recvfrom(512)
    is_a = question[-4:] == b"\0\1\0\1"
    head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(sys.argv[1]) if is_a else b""
    names.sendto(head + question[12:] + answer, client)
"#;

/// A namespace with two addresses that the machine has a route to; gone when it goes out of scope.
struct World {
    name: String,
    /// The machine's own address on the way there.
    host: String,
    near: String,
    far: String,
    server: Child,
    _other: Other,
}

impl World {
    /// Each number is a world of its own.
    fn new(number: u8) -> World {
        let name = format!("ampoule-world-{number}");
        let address = |last: u8| format!("198.51.100.{}", number * 8 + last);
        let (host, near, far) = (address(1), address(2), address(3));
        let link = format!("world-{number}");
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
        ip(&format!("address add {host}/29 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} address add {near}/29 dev eth0"));
        ip(&format!("-n {name} address add {far}/29 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        let mut server = Command::new("ip");
        server.args(["netns", "exec", &name, "python3", "-c", WORLD, &near]).stdout(Stdio::piped()).process_group(0);
        let mut server = server.spawn().expect("python3 is installed");
        let mut ready = [0; 5];
        let output = server.stdout.as_mut().expect("it is piped");
        io::Read::read_exact(output, &mut ready).expect("it says so when it is ready");
        let other = Other::is(server.id());
        World { name, host, near, far, server, _other: other }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.server.kill().expect("it is our child");
        self.server.wait().expect("it is our child");
        ip(&format!("netns delete {}", self.name));
    }
}

#[track_caller]
fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A service with this `[network]`.
fn service(network: &str) -> (Service, TempDir) {
    let folder = TempDir::with_prefix("ampoule-settings-").expect("the temporary folder can be written");
    let file = folder.path().join("ampoule.toml");
    fs::write(&file, format!("[network]\n{network}\n")).expect("the folder can be written");
    let arguments = vec!["--config".to_owned(), file.display().to_string()];
    (Service::with(Options { arguments, ..Options::default() }), folder)
}

fn connected(line: &str) -> JobRequest {
    JobRequest { network: Some("default".to_owned()), ..shell(line) }
}

#[track_caller]
fn says(service: &Service, line: &str, expected: &str) {
    let job = service.run(&connected(line));
    assert_eq!((kind(&job), stdout(&job)), (EndingKind::Exited, expected), "{job:#?}\n{}", stderr(&job));
}

#[test]
fn a_run_reaches_the_world_by_name_and_leaves_nothing_of_that_in_the_image() {
    let world = World::new(0);
    let (service, _settings) = service(&format!("nameservers = ['{}']", world.near));
    let dockerfile = "FROM busybox\nRUN wget -q -O /from http://world.test/ && cp /etc/resolv.conf /copy\n\
        RUN --network=none test $(ls /sys/class/net 2>/dev/null | wc -l) -eq 0 && ! wget -q -T 5 http://world.test/\n";
    check_built(&build(&service, &[("Dockerfile", dockerfile)], &["-t", "app"]));
    let job = service.run(&JobRequest { image: "app".to_owned(), ..shell("cat /from; echo; cat /copy; ls /etc") });
    let (from, rest) = stdout(&job).split_once('\n').expect("there are lines");
    // NAT: the world sees the machine.
    assert_eq!(from, world.host);
    assert!(rest.starts_with(&format!("nameserver {}\n", world.near)), "{rest}");
    let in_base = stdout(&service.run(&shell("ls /etc"))).to_owned();
    assert!(rest.ends_with(&in_base), "{rest} does not end with {in_base}");
}

#[test]
fn what_add_downloads_is_checked_kept_by_its_content_and_comes_from_the_world_only() {
    let world = World::new(2);
    let (service, _settings) = service(&format!("deny = ['{}/32']", world.far));
    let add = |flags: &str, from: &str, to: &str| {
        let dockerfile = format!("FROM busybox\nADD {flags} {from} {to}\nRUN --network=none cat /got >/copy\n");
        build(&service, &[("Dockerfile", &dockerfile)], &["-t", "app"])
    };
    let url = format!("http://{}/some/file%20name", world.near);
    // The world answers with the address that it sees.
    let digest = Sha256::digest(world.host.as_bytes());
    let checksum: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    check_built(&add(&format!("--checksum=sha256:{checksum}"), &url, "/got"));
    let job = service.run(&JobRequest { image: "app".to_owned(), ..shell("cat /copy; stat -c ' %a %u %Y' /got") });
    assert_eq!(stdout(&job), format!("{} 600 0 0\n", world.host));
    let again = said(&add(&format!("--checksum=sha256:{checksum}"), &url, "/got"));
    assert_eq!(again.matches(" CACHED").count(), 2, "{again}");
    let dockerfile = format!("FROM busybox\nADD {url} /in/\nRUN --network=none cat '/in/file name'\n");
    check_built(&build(&service, &[("Dockerfile", &dockerfile)], &[]));
    let other = said(&add(&format!("--checksum=sha256:{}", "0".repeat(64)), &url, "/got"));
    assert!(other.contains("not what --checksum says") && other.contains("Dockerfile:2:1"), "{other}");
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    listener.set_nonblocking(true).expect("it is a socket");
    let port = listener.local_addr().expect("it is bound").port();
    let hosts =
        [format!("{}:{port}", world.host), format!("127.0.0.1:{port}"), format!("localhost:{port}"), world.far.clone()];
    for host in hosts {
        let refused = said(&add("", &format!("http://{host}/"), "/got"));
        assert!(refused.contains("must not reach"), "{refused}");
    }
    assert_eq!(listener.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn neither_the_machine_nor_other_sandboxes_nor_what_is_denied_can_be_reached() {
    let world = World::new(1);
    let (service, _settings) = service(&format!("jobs = true\ndeny = ['{}/32']", world.far));
    says(&service, &format!("wget -q -O - http://{}/", world.near), &world.host);
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    listener.set_nonblocking(true).expect("it is a socket");
    let port = listener.local_addr().expect("it is bound").port();
    let gateway = "$(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p')";
    for address in [&world.host, "127.0.0.1", gateway] {
        says(&service, &format!("nc -w 5 {address} {port} </dev/null && echo reached; true"), "");
    }
    assert_eq!(listener.accept().expect_err("nobody came").kind(), io::ErrorKind::WouldBlock);
    says(&service, &format!("wget -q -T 5 -O - http://{}/; true", world.far), "");
    // Two sandboxes: the address of the first is what the second tries.
    let first = service.submit(&connected("ip -o -4 address show eth0; nc -l -p 4099 -w 60"));
    let address = own_address(&service, &first.id);
    says(&service, &format!("nc -w 3 {address} 4099 </dev/null && echo reached; true"), "");
    assert_eq!(service.job(&first.id).state, JobState::Running, "nobody came");
    service.send("POST", &format!("/v1/jobs/{}/cancel", first.id), &[], b"");
    service.wait(&first.id);
}

/// The address that a job printed of itself.
fn own_address(service: &Service, id: &str) -> String {
    let printed = |text: &str| Some(text.split("inet ").nth(1)?.split('/').next()?.to_owned());
    let job = service.wait_for(id, |_| {
        let log = service.get(&format!("/v1/jobs/{id}/logs"));
        printed(&log.text()).is_some()
    });
    printed(&service.get(&format!("/v1/jobs/{}/logs", job.id)).text()).expect("it was there")
}

#[test]
fn a_job_has_a_network_only_where_the_operator_grants_it() {
    let service = Service::start();
    let answer = service.post("/v1/jobs", &connected("true"));
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("network.jobs"), "{}", answer.text());
}

#[test]
fn bridge_and_rules_go_with_the_service_and_what_a_killed_one_left_goes_with_the_next() {
    let (mut service, _settings) = service("jobs = true");
    says(&service, "true", "");
    let links = || host::links_of_instance(&service.state());
    assert!(!links().is_empty(), "there is no bridge");
    nix::sys::signal::kill(service.launcher(), Signal::SIGKILL).expect("we are root");
    service.wait_for_end();
    assert!(!host::links_of_instance(&service.state()).is_empty(), "who took the bridge down?");
    service.spawn();
    assert!(host::links_of_instance(&service.state()).is_empty(), "the bridge of the killed launcher is still there");
    says(&service, "true", "");
    service.stop();
}
