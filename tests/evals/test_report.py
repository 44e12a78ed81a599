"""Figures and reports: drawn without a backend, and whole in one file."""

import re
import subprocess
import sys

import numpy as np
import pytest

from upalm.evals import report, text_table
from upalm.evals.bootstrap import Estimate

GAIN = {"gap": {"base": Estimate(-0.5, -0.6, -0.4, 9, 0.05), "ul2r": Estimate(0.1, 0.0, 0.2, 9, 0.05)}}


def test_import_leaves_the_plotting_backend_alone():
    code = "import matplotlib, sys; matplotlib.use('svg'); import upalm.evals.report; print(matplotlib.get_backend())"
    code += "; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["svg", "False"]


def test_figures_show_themselves_in_notebooks():
    figure = report.draw_estimates([report.Panel("gain", GAIN)])
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_estimates_are_points_with_their_intervals():
    [axis] = report.draw_estimates([report.Panel("gain", GAIN)]).axes
    points = [container.lines[0].get_xdata()[0] for container in axis.containers]
    bars = [[tuple(x[:, 0]) for x in container.lines[2][0].get_segments()][0] for container in axis.containers]
    assert points == [-0.5, 0.1]
    assert bars == [pytest.approx((-0.6, -0.4)), pytest.approx((0.0, 0.2))]
    assert axis.get_xlim()[0] < 0 < axis.get_xlim()[1]  # zero is in view


def test_losses_are_drawn_by_denoiser_and_smoothed():
    lines = [{"step": i, "loss": 3.0, "loss_r": 3 + (-1) ** i, "loss_s": 2.0} for i in range(40)] + [{"step": 40}]
    [axis] = report.draw_loss_curves({"ul2r": lines}).axes
    curves = {line.get_label(): line.get_ydata() for line in axis.lines if not line.get_label().startswith("_")}
    assert curves.keys() == {"R", "S"}
    assert np.abs(curves["R"][5:-5] - 3).max() < 0.2


def test_smoothing_averages_noise_at_both_ends_too():
    noise = np.random.default_rng(0).normal(2, 0.3, 100)
    assert np.abs(report.smooth(noise) - 2).max() < 0.25
    assert report.smooth(np.full(3, 2.0)) == pytest.approx(2)


def test_report_is_one_file_that_shows_user_text_as_text(tmp_path):
    fills = report.format_fills("a <b>", "return x", "&", {"m<1>": "return y", "none": ""})
    figure = report.format_figure(report.draw_estimates([report.Panel("t", GAIN)]), 'a "caption"')
    report.save_html(tmp_path / "r.html", "<title>", [("Gaps", fills), ("Figure", figure)])
    page = (tmp_path / "r.html").read_text()
    assert "a &lt;b&gt;" in page and "m&lt;1&gt;" in page and "<b>" not in page and "(nothing)" in page
    assert '<mark class="same">return</mark><mark> y</mark>' in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page


def test_text_tables_keep_markup_and_width():
    text = text_table.format_table(("model[/b]", "score"), [("a[red]", "1"), ("b", "22")])
    assert text.split("\n") == ["model[/b]  score", "a[red]         1", "b             22"]
