//! A machine on which the node cannot run: the start says what is missing and what to do. The kernel's refusal is
//! played by a seccomp filter, as container runtimes do it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

/// Starts a node for which io_uring_setup fails with `errno`.
fn start_with_refused_ring(errno: i32) -> Output {
    let data = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-{errno}-{}", std::process::id()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_clearway"));
    command
        .args([
            "--http_bind_address",
            "127.0.0.1:0",
            "--settlement_api_bind_address",
            "127.0.0.1:0",
            "--data_dir",
        ])
        .arg(&data)
        .stdin(Stdio::null());
    // SAFETY: between fork and exec only the two system calls of `refuse` are made; nothing is allocated.
    unsafe { command.pre_exec(move || refuse(libc::SYS_io_uring_setup, errno)) };
    let output = command.output().expect("the node's binary can be run");
    let _ = std::fs::remove_dir_all(&data);
    output
}

/// From now on this process gets `errno` for that system call.
fn refuse(system_call: libc::c_long, errno: i32) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        // The number of the call is the first word of what the filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, system_call as u32),
        instruction(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | errno as u32,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is complete and lives until the kernel has copied it.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[test]
fn a_start_without_io_uring_says_what_to_do() {
    for (errno, words) in [
        (libc::EPERM, ["io_uring is not permitted here", "seccomp"]),
        (libc::ENOSYS, ["io_uring is not permitted here", "io_uring_disabled"]),
        (libc::EINVAL, ["needs Linux 6.1", "deferred task run"]),
        (libc::ENOMEM, ["could not be set up", "ulimit -l"]),
    ] {
        let output = start_with_refused_ring(errno);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "errno {errno}: {said}");
        for word in words {
            assert!(said.contains(word), "errno {errno}: no {word:?} in {said:?}");
        }
        assert!(!said.contains("panicked"), "errno {errno}: {said}");
    }
}
