"""How ssh is called, and what its end means."""

import asyncio

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError, LinkError
from vmferry_transports.ssh import SshOptions, SshTransport
from vmferry_transports.ssh.complaints import explain
from vmferry_transports.ssh.program import SshProcess, command


def call(url, **options):
    return command(Address.parse(url), SshOptions(ssh_command="sh", **options))


def test_user_port_and_pool():
    argv = call("ssh://alice@hostb:2222/srv/my guests")
    assert argv[argv.index("-p") + 1] == "2222"
    assert argv[argv.index("-l") + 1] == "alice"
    assert argv[-2:] == ["hostb", "migrate stdio --pool '/srv/my guests'"]


def test_a_host_is_never_taken_for_an_option():
    argv = call("ssh://-oProxyCommand=x")
    assert argv[argv.index("--") + 1].startswith("-o")


def test_how_migrate_is_called_there():
    argv = call("ssh://hostb", remote_command="sudo migrate", remote_options="--volume qcow2")
    assert argv[-1] == "sudo migrate stdio --volume qcow2"


def test_options_for_ssh():
    argv = command(Address.parse("ssh://b"), SshOptions(ssh_command="sh -F 'my config'"))
    assert argv[:3] == ["sh", "-F", "my config"]


@pytest.mark.parametrize(
    ("ssh", "text"), [("no-such-ssh", "not installed here"), ("'", "ssh_command"), (" ", "empty")]
)
def test_ssh_that_cannot_be_called(ssh, text):
    with pytest.raises(InputError, match=text):
        command(Address.parse("ssh://hostb"), SshOptions(ssh_command=ssh))


@pytest.mark.parametrize("url", ["ssh:///path", "ssh://host?a=b"])
async def test_addresses_that_cannot_be_connected_to(url):
    with pytest.raises(InputError, match="write ssh://user@host"):
        await SshTransport().connect(Address.parse(url), lanes=3, limits=Limits())


@pytest.mark.parametrize("url", ["ssh://host", "ssh://host/path", "ssh://"])
async def test_addresses_that_cannot_be_listened_on(url):
    with pytest.raises(InputError, match="sshd does that"):
        await SshTransport().listen(Address.parse(url), limits=Limits())


async def test_two_agents_do_not_share_a_socket(tmp_path):
    address = Address.parse(f"ssh://{tmp_path}/agent")
    listener = await SshTransport().listen(address, limits=Limits())
    with pytest.raises(InputError, match=r"an agent listens at .*/agent already"):
        await SshTransport().listen(address, limits=Limits())
    assert (tmp_path / "agent").stat().st_mode & 0o777 == 0o600
    await listener.close()
    assert not (tmp_path / "agent").exists()


@pytest.mark.parametrize(
    ("code", "said", "text"),
    [
        (255, "ssh: Could not resolve hostname b: Name or service not known", "no such host"),
        (255, "ssh: connect to host b port 22: Connection refused", "no sshd listens there"),
        (255, "root@b: Permission denied (publickey).", "login refused"),
        (255, "ssh: connect to host b port 22: Connection timed out", "does not answer"),
        (255, "Host key verification failed.", "connect once by `ssh`"),
        (255, "something new", "ssh failed: something new"),
        (255, "", "ssh failed: it said nothing"),
        (127, "bash: migrate: command not found", "not found there: install vmferry"),
        (126, "", "cannot be run there"),
        (2, "migrate: error: No such command 'stdio'.", "older than this one"),
        (2, "migrate: error: no pool", r"gave no agent \(exit code 2\): no pool"),
    ],
)
def test_every_end_has_a_meaning(code, said, text):
    error = explain("ssh://b", "migrate", code, [said])
    assert isinstance(error, LinkError)
    with pytest.raises(LinkError, match=f"^ssh://b: .*{text}"):
        raise error


async def test_a_process_that_does_not_end_is_made_to():
    process = SshProcess(["sleep", "600"])
    process.sock.close()
    async with asyncio.timeout(30):
        await process.close(0.1)
    assert process.ended.result() < 0


async def test_a_key_typed_at_the_terminal_does_not_end_it():
    process = SshProcess(["sh", "-c", "kill -INT $$; echo still here >&2; cat"])
    async with asyncio.timeout(30):
        while "still here" not in process.said:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        process.sock.close()
        await process.close(20)
    assert process.ended.result() == 0
