"""torch_utils.cli: number ranges, grouped help, one-line errors and exit codes."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from torch_utils import cli
from torch_utils.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("7", [7]),
        ("0-3", [0, 1, 2, 3]),
        ("0-3,200,3", [0, 1, 2, 3, 200, 3]),
        ("5-5", [5]),
        ("9,1", [9, 1]),
        (" 1 , 2 - 4 ", [1, 2, 3, 4]),
        ("007", [7]),
        ("999999999999999999", [10**18 - 1]),
    ],
)
def test_number_ranges(text, numbers):
    assert cli.NumberRanges().convert(text, None, None) == numbers


def test_number_ranges_take_a_list_as_it_is():
    assert cli.NumberRanges().convert([3, 1], None, None) == [3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is neither a number nor a range"),
        ("a", "'a' is neither"),
        ("1,,2", "'' is neither"),
        ("1-", "'1-' is neither"),
        ("-1", "'-1' is neither"),
        ("1-2-3", "'1-2-3' is neither"),
        ("1.5", "'1.5' is neither"),
        ("²", "'²' is neither"),
        ("٣", "'٣' is neither"),
        ("3-1", "'3-1' runs backwards; write 1-3"),
        ("0-10000000", "more than 10,000,000 numbers"),
        ("0-9999999,1", "more than 10,000,000 numbers"),
        ("1000000000000000000", "more than 18 digits"),
        ("1-" + 5000 * "9", "more than 18 digits"),
    ],
)
def test_number_ranges_errors(text, message):
    with pytest.raises(click.BadParameter) as error:
        cli.NumberRanges().convert(text, None, None)
    assert message in error.value.message


def test_as_many_numbers_as_allowed(monkeypatch):
    monkeypatch.setattr(cli, "MAX_NUMBERS", 5)
    assert cli.NumberRanges().convert("0-2,8-9", None, None) == [0, 1, 2, 8, 9]
    with pytest.raises(click.BadParameter):
        cli.NumberRanges().convert("0-2,7-9", None, None)


@pytest.mark.parametrize("number", [cli.Float(0), cli.Integer(0)])
@pytest.mark.parametrize("text", ["a", "", "1,2", "٣a"])
def test_what_is_not_a_number_is_called_so_in_plain_words(number, text):
    with pytest.raises(click.BadParameter, match=rf"^{text!r} is not a valid (number|integer)\.$"):
        number.convert(text, None, None)


def test_options_are_gathered_into_a_dataclass():
    @dataclass
    class Size:
        width: int = 1
        height: int = 2

    @click.command(cls=cli.Command)
    @cli.option("Size", "--height", type=int, default=3)
    @cli.option("Other", "--name", default="x")
    @cli.gather(Size, "size")
    def command(name, size):
        """Print."""
        print(name, size.width, size.height)

    assert CliRunner().invoke(command, ["--height", "5"]).output == "x 1 5\n"
    assert "--height" in CliRunner().invoke(command, ["--help"]).output


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "-0.5", "x"])
def test_float_takes_finite_numbers_within_its_bounds(text):
    with pytest.raises(click.BadParameter):
        cli.Float(0).convert(text, None, None)


def test_float():
    assert cli.Float(0).convert("1e3", None, None) == 1000.0


@pytest.mark.parametrize("text", ["tpu", "meta", "cpu:0", "cuda:", "cuda:x", "cuda:٣", "", "cuda:0 "])
def test_what_is_no_device(text):
    with pytest.raises(click.BadParameter, match="write cpu, cuda or cuda:1"):
        cli.Device().convert(text, None, None)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_devices_that_are_there_and_others(monkeypatch, gpus):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    there = ["cpu", "cuda", "cuda:0", "cuda:1"][: {0: 1, 1: 3, 2: 4}[gpus]]
    for text in there:
        assert cli.Device().convert(text, None, None) == text
    for text in {"cuda", "cuda:0", "cuda:1", "cuda:99"} - set(there):
        with pytest.raises(click.BadParameter, match=f"finds {gpus} GPU{'s' * (gpus != 1)};"):
            cli.Device().convert(text, None, None)


@click.command(cls=cli.Command, example="python tool.py --alpha 3\npython tool.py --beta")
@click.option("--alpha", cls=cli.Option, group="Greek", type=int, default=2, help="The first letter.")
@click.option("--aleph", cls=cli.Option, group="Hebrew", help="Another first letter.")
@click.option("--beta", cls=cli.Option, group="Greek", is_flag=True, help="The second letter.")
def tool(**_):
    """Do nothing."""


def test_help_groups_the_options_and_gives_the_example():
    result = CliRunner().invoke(tool, ["--help"])
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines() if line.strip()]
    headings = {name: lines.index(f"{name}:") for name in ("Greek", "Hebrew", "Other", "Example")}
    assert list(headings) == sorted(headings, key=headings.get)  # in the order of their first options
    for option, before, after in [
        ("--alpha", "Greek", "Hebrew"),
        ("--beta", "Greek", "Hebrew"),
        ("--aleph", "Hebrew", "Other"),
        ("--help", "Other", "Example"),
    ]:
        (line,) = (i for i, text in enumerate(lines) if text.startswith(option))
        assert headings[before] < line < headings[after]
    assert "[default: 2]" in result.output
    assert lines[headings["Example"] + 1 :] == ["python tool.py --alpha 3", "python tool.py --beta"]


def test_writable_folder_is_made_and_left_empty(tmp_path):
    path = cli.writable_folder(tmp_path / "a" / "b")
    assert path == tmp_path / "a" / "b"
    assert os.listdir(path) == []
    assert cli.writable_folder(str(path)) == path


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_name_that_is_too_long_is_the_users_mistake(tmp_path, place):
    """Wherever it is met: pathlib's own questions fail with it."""
    call = f"cli.writable_{place}({str(tmp_path / ('a' * 300))!r}{', 1' if place == 'file' else ''})"
    for body in (call, f"__import__('pathlib').Path({str(tmp_path / ('a' * 300))!r}).exists()"):
        result = script(body)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert "too long" in result.stderr


@pytest.mark.parametrize("arguments", [["--path", ""], ["--many", "a", "--many", ""], ["--path="]])
def test_an_empty_text_is_a_mistake(arguments):
    """As of a shell's variable that is not set: as a path it would be the current folder."""

    @click.command(cls=cli.Command)
    @cli.option("Options", "--path", default="")
    @cli.option("Options", "--many", multiple=True)
    def main(path, many):
        return path, many

    assert main.main([], standalone_mode=False) == ("", ())
    with pytest.raises(click.BadParameter, match="is empty; write a value, or leave the option out"):
        main.main(arguments, standalone_mode=False)


def test_what_may_not_be_read_is_one_line(tmp_path):
    """Wherever it is met."""
    result = script(f"raise PermissionError({errno.EACCES}, 'Permission denied', {str(tmp_path)!r})")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{tmp_path} may not be read or looked into" in result.stderr
    assert script("raise PermissionError('a bug')").returncode == 1


def test_writable_folder_on_a_file_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("here")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="--outdir") as error:
            cli.writable_folder(path)
        assert error.value.message == f"{tmp_path / 'file'} is a file, not a folder; name another with --outdir"
    assert (tmp_path / "file").read_text() == "here"


def script(body, *arguments, **options):
    """Runs a script whose command is `main(number)` with that body."""
    text = f"""
        import sys
        import click
        from torch_utils import cli
        from torch_utils.errors import Failure, UserError

        @click.command(cls=cli.Command)
        @click.option("--number", type=click.IntRange(0, 9), default=0)
        def main(number):
            {body}

        cli.run(main)
    """
    command = [sys.executable, "-c", textwrap.dedent(text), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


def test_done():
    done = script("print('number', number)", "--number", "3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "number 3\n", "")


@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ("raise UserError('no such file:\\n  write another')", [], "no such file: write another"),
        ("raise click.ClickException('from click')", [], "from click"),
        ("raise MemoryError()", [], "there is not enough memory; take a smaller --batch"),
        ("import torch; raise torch.OutOfMemoryError('CUDA out of memory')", [], "there is not enough memory"),
        ("import torch; torch.empty(2**60, dtype=torch.uint8)", [], "there is not enough memory"),
        ("pass", ["--number", "10"], "--number"),
        ("pass", ["--number"], "--number"),
        ("pass", ["--nuber", "1"], "--nuber"),
        ("pass", ["extra"], "extra"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(body, arguments, message):
    failed = script(body, *arguments)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1 and failed.stderr.endswith("\n")
    assert message in failed.stderr
    assert failed.stderr.endswith("(see --help)\n") == bool(arguments)


def test_a_bug_keeps_its_traceback():
    failed = script("[].pop()")
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr
    assert failed.stderr.endswith("IndexError: pop from empty list\n")


def test_help_is_done():
    helped = script("raise AssertionError", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "--number" in helped.stdout


@pytest.mark.parametrize("body", ["raise KeyboardInterrupt", "raise click.Abort"])
def test_stopped_by_the_user(body):
    stopped = script(body)
    assert stopped.returncode == 130
    assert stopped.stderr.strip() == "stopped"


def test_stopped_by_the_user_while_modules_are_imported():
    """Before a command runs, in the command's process and in those that it starts."""
    for body, said in (("", "stopped\n"), ("cli.multiprocessing.parent_process = lambda: True; ", "")):
        program = f"from torch_utils import cli; {body}raise KeyboardInterrupt"
        stopped = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert (stopped.returncode, stopped.stderr) == (-signal.SIGINT, said)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 10_000])  # less than a buffer, and more
def test_a_reader_that_goes_away_is_no_error(lines, unbuffered):
    text = f"""
        import sys
        import click
        from torch_utils import cli
        from torch_utils.errors import Failure, UserError

        @click.command()
        def main():
            sys.stdin.readline()
            for _ in range({lines}):
                print("x" * 100)

        cli.run(main)
    """
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options |= {"cwd": ROOT, "env": os.environ | {"PYTHONUNBUFFERED": unbuffered}}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], **options) as process:
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_another_broken_pipe_is_a_bug():
    failed = script("raise BrokenPipeError(32, 'a worker died')")
    assert failed.returncode == 1
    assert failed.stderr.endswith("BrokenPipeError: [Errno 32] a worker died\n")


def test_an_exit_of_the_commands_own_is_kept():
    assert script("sys.exit(5)").returncode == 5
    assert script("click.get_current_context().exit(6)").returncode == 6


# Scripts with commands.


@pytest.fixture
def many():
    @click.group(cls=cli.Group, default="own")
    def main():
        """The script's own."""

    @main.command("own", example="many.py --seeds 1")
    @cli.option("Images", "--seeds", required=True, help="Which.")
    def own(seeds):
        """The script's own."""
        print("own", seeds)

    @main.command("mix", example="many.py mix --rows 1")
    @cli.option("Images", "--rows", required=True, help="Which.")
    def mix(rows):
        """The other."""
        print("mix", rows)

    return main


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [(["--seeds", "mix"], "own mix"), (["mix", "--rows", "7"], "mix 7"), (["own", "--seeds", "1"], "own 1")],
)
def test_a_script_runs_its_own_command_or_another(many, arguments, printed):
    result = CliRunner().invoke(many, arguments)
    assert result.exit_code == 0 and result.output == f"{printed}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mxi", "--rows", "1"], "there is no command 'mxi'; write one of mix, or only options"),
        (["mix"], "Missing option '--rows'; for example: many.py mix --rows 1"),
        (["mix", "--seeds", "1"], "No such option"),
        ([], "Missing option '--seeds'; for example: many.py --seeds 1"),
        (["--rows", "1"], "No such option"),
    ],
)
def test_mistakes_in_a_script_with_commands(many, arguments, message):
    result = CliRunner().invoke(many, arguments)
    assert result.exit_code == 2 and message in result.output


def test_help_of_a_script_lists_its_commands(many):
    own, other = (CliRunner().invoke(many, [*words, "--help"]).output for words in ([], ["mix"]))
    assert "mix  The other." in own and "--seeds" in own and "many.py --seeds 1" in own
    assert "The other." in other and "--rows" in other and "--seeds" not in other


def test_a_result_that_cannot_be_written_is_told_before_the_work(tmp_path):
    @click.command()
    @cli.option("Output", "--json", type=cli.ResultFile(), help="Where to.")
    def main(json):
        raise AssertionError("the work")

    for path, words in (("/dev/null/a.json", "is a file, not a folder"), (".", "is a folder, not a file")):
        with pytest.raises(UserError, match=f"{words}; name another with --json"):
            main([f"--json={path}"], standalone_mode=False)


def test_names_in_a_message_keep_their_spaces():
    """So that a command in it can be pasted; line breaks do not stay."""
    assert UserError("there is no 'a  b\u00a0c' here;\n  name\r\nanother \n").message == (
        "there is no 'a  b\\xa0c' here; name another"
    )


def test_a_name_of_nothing_but_spaces_takes_no_time():
    """From a file of somebody else's; with a regular expression that backtracks, this takes hours."""
    assert UserError(f"there is no a{' ' * 300_000}b").message.endswith("b")


def test_on_windows_one_line_says_what_to_use(monkeypatch, capsys):
    monkeypatch.setattr(cli.sys, "platform", "win32")
    with pytest.raises(SystemExit) as stopped:
        cli.run(click.Command("train", callback=lambda: None))
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: this project runs on Linux and macOS; on Windows, use it in WSL 2\n"
