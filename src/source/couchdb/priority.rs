//! The urgency of reading, for the kernel's scheduler of disks. Set by `ionice` of util-linux, because the system call
//! has no safe wrapper; it applies to one thread.

use tokio_util::sync::CancellationToken;

use crate::config::IoPriority;
use crate::exec::Program;

/// Sets the priority of the calling thread, which may block. Whether that was possible.
pub(super) fn settle(priority: IoPriority, runtime: &tokio::runtime::Handle) -> bool {
    let class: &[&str] = match priority {
        IoPriority::Normal => return true,
        IoPriority::Low => &["-c", "2", "-n", "7"],
        IoPriority::Idle => &["-c", "3"],
    };
    let thread = nix::unistd::gettid().to_string();
    let program = Program::new("ionice").args(class).args(["-p", &thread]);
    let outcome = runtime.block_on(program.collect(&CancellationToken::new(), 4096));
    outcome.is_ok_and(|(_, ended)| ended.status.success())
}
