//! Policies that are WASI commands: JSON in, JSON out, and nothing else.

use ampoule_plugins::{Decision, Policies, VerdictKind};

use crate::service::{Service, admitted, denial, failure, job};

/// A command that writes `answer` to its standard output, after `before` was executed.
fn command(answer: &str, before: &str) -> String {
    let escaped: String = answer.bytes().map(|byte| format!("\\{byte:02x}")).collect();
    let length = answer.len();
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (memory (export "memory") 4)
            (data (i32.const 1024) "{escaped}")
            (func $say (param $fd i32) (param $at i32) (param $length i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
            (func (export "_start")
                {before}
                (call $say (i32.const 1) (i32.const 1024) (i32.const {length}))))"#
    )
}

const BINDING: &str = "[[policy]]\nname = \"cmd\"\nfile = \"cmd.wasm\"\nhooks = [\"admission\"]\n";

fn load(text: &str) -> Policies {
    let service = Service::new();
    service.add_wat("cmd.wasm", text);
    service.load(BINDING).expect("the command is bound")
}

fn ask(answer: &str, before: &str) -> Decision {
    load(&command(answer, before)).admit(job())
}

/// Checks that a command refuses the job with this code and says this in the stored verdict.
fn check(answer: &str, before: &str, code: &str, said: &str) {
    let decision = ask(answer, before);
    let refusal = denial(&decision);
    assert_eq!((refusal.policy.as_str(), refusal.code.as_str()), ("cmd", code), "{decision:?}");
    assert_eq!(decision.verdicts[0].verdict, VerdictKind::Error);
    assert!(decision.verdicts[0].reason.contains(said), "{}", decision.verdicts[0].reason);
}

#[test]
fn a_command_allows_refuses_and_changes_with_json() {
    admitted(&ask(r#"{"verdict":"allow"}"#, ""));
    let refused = ask(r#"{"verdict":"deny","code":"no-jobs","reason":"it is Monday","hint":"wait"}"#, "");
    let refusal = denial(&refused);
    assert_eq!(
        (refusal.code.as_str(), refusal.reason.as_str(), refusal.hint.as_str()),
        ("no-jobs", "it is Monday", "wait")
    );
    let changes = r#"{"verdict":"change","changes":[{"set_limit":{"name":"pids","value":7}},{"set_user":"1000"}],
        "warnings":[{"code":"mind","message":"fewer processes"}]}"#;
    let changed = ask(changes, "");
    assert_eq!((admitted(&changed).limits.pids, admitted(&changed).user.as_str()), (7, "1000"));
    assert_eq!(changed.verdicts[0].changed, ["limits.pids", "user"]);
    assert_eq!(changed.warnings[0].code, "mind");
}

#[test]
fn a_command_that_calls_exit_0_has_answered_and_any_other_status_is_a_failure() {
    let answer = r#"{"verdict":"allow"}"#;
    let say = format!("(call $say (i32.const 1) (i32.const 1024) (i32.const {}))", answer.len());
    admitted(&ask(answer, &format!("{say} (call $exit (i32.const 0))")));
    check(answer, &format!("{say} (call $exit (i32.const 3))"), "policy-failed", "exited with status 3");
}

#[test]
fn a_command_with_a_malformed_answer_refuses_the_job() {
    check("", "", "policy-malformed-answer", "no verdict");
    check("allow", "", "policy-malformed-answer", "no verdict");
    check(r#"{"verdict":"allow","colour":"red"}"#, "", "policy-malformed-answer", "colour");
    let zero = r#"{"verdict":"change","changes":[{"set_limit":{"name":"pids","value":0}}]}"#;
    check(zero, "", "policy-malformed-answer", "limits.pids");
}

#[test]
fn a_command_that_writes_without_end_is_cut_off() {
    let flood = "(loop $again (call $say (i32.const 1) (i32.const 0) (i32.const 65536)) (br $again))";
    let decision = ask("", flood);
    let code = &denial(&decision).code;
    assert!(code == "policy-malformed-answer" || code == "policy-out-of-fuel", "{decision:?}");
}

#[test]
fn a_command_cannot_spin_sleep_grow_or_open_a_file() {
    check("", "(loop $again (br $again))", "policy-out-of-fuel", "fuel");
    let sleep = "(drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 8)))";
    check("", sleep, "policy-failed", "cannot wait");
    let grow = "(if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))";
    check("", grow, "policy-out-of-memory", "memory");
    // Descriptor 3 would be the first folder, if it were given any.
    let open = "(if (i32.eqz (call $open (i32.const 3) (i32.const 0) (i32.const 1024) (i32.const 1) (i32.const 0)
        (i64.const 0) (i64.const 0) (i32.const 0) (i32.const 16))) (then unreachable))";
    admitted(&ask(r#"{"verdict":"allow"}"#, open));
}

#[test]
fn what_a_command_writes_to_standard_error_is_kept_with_its_failure() {
    let complain = "(call $say (i32.const 2) (i32.const 1024) (i32.const 14)) unreachable";
    check("cannot do this", complain, "policy-failed", "standard error: cannot do this");
}

#[test]
fn a_command_gets_the_hook_as_its_first_argument_and_the_question_as_json() {
    // Traps unless the second argument string is `admission` (its first four bytes) and the input begins with `{"co`.
    let look = r#"
        (drop (call $args_sizes (i32.const 0) (i32.const 4)))
        (if (i32.ne (i32.load (i32.const 0)) (i32.const 2)) (then unreachable))
        (drop (call $args (i32.const 16) (i32.const 64)))
        (if (i32.ne (i32.load (i32.load (i32.const 20))) (i32.const 0x696d6461)) (then unreachable))
        (i32.store (i32.const 0) (i32.const 4096))
        (i32.store (i32.const 4) (i32.const 65536))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (i32.ne (i32.load (i32.const 4096)) (i32.const 0x6f63227b)) (then unreachable))"#;
    admitted(&ask(r#"{"verdict":"allow"}"#, look));
}

#[test]
fn a_command_is_asked_from_a_thread_that_drives_async_tasks_too() {
    let policies = load(&command(r#"{"verdict":"allow"}"#, ""));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        admitted(&policies.admit(job()));
    });
}

#[test]
fn a_command_says_in_its_binding_what_it_answers() {
    let service = Service::new();
    service.add_wat("cmd.wasm", &command(r#"{"verdict":"allow"}"#, ""));
    let message = failure(service.load("[[policy]]\nname = \"cmd\"\nfile = \"cmd.wasm\"\n"));
    assert!(message.contains("hooks = [\"admission\"]"), "{message}");
    let refusing = r#"{"verdict":"deny","code":"bad-settings","reason":"`size` is missing"}"#;
    service.add_wat("cmd.wasm", &command(refusing, ""));
    let message = failure(service.load(&BINDING.replace("\"admission\"", "\"admission\", \"settings\"")));
    assert!(message.contains("settings: `size` is missing"), "{message}");
}
