"""Census-Income (KDD): persons of the US census bureau's 1994 and 1995 surveys; the multi-task benchmark of MMoE and PLE.

Terms: none stated (UCI machine learning repository).

Citation: UCI Machine Learning Repository. 2000. Census-Income (KDD). https://doi.org/10.24432/C5N30T
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, read_table
from recstack.data.log import Log
from recstack.errors import ConfigError, DataError, unknown
from recstack.schema import Categorical, Numeric, Schema, Task

ABOUT = (
    About(
        name="census-income",
        loader="census_income()",
        rows="299,285 persons",
        what="40 demographic columns; income over 50,000 dollars, never married; 199,523 / 49,881 / 49,881 rows.",
        terms="none stated (UCI)",
        folders=("census-income-kdd",),
        needs=("census-income.data",),
        remotes=(
            Remote(
                "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip",
                keep=("census-income.data", "census-income.test"),
            ),
        ),
    ),
)

COLUMNS = [
    "age",
    "class_of_worker",
    "detailed_industry_recode",
    "detailed_occupation_recode",
    "education",
    "wage_per_hour",
    "enroll_in_edu_inst_last_wk",
    "marital_stat",
    "major_industry_code",
    "major_occupation_code",
    "race",
    "hispanic_origin",
    "sex",
    "member_of_a_labor_union",
    "reason_for_unemployment",
    "full_or_part_time_employment_stat",
    "capital_gains",
    "capital_losses",
    "dividends_from_stocks",
    "tax_filer_stat",
    "region_of_previous_residence",
    "state_of_previous_residence",
    "detailed_household_and_family_stat",
    "detailed_household_summary_in_household",
    "instance_weight",
    "migration_code_change_in_msa",
    "migration_code_change_in_reg",
    "migration_code_move_within_reg",
    "live_in_this_house_1_year_ago",
    "migration_prev_res_in_sunbelt",
    "num_persons_worked_for_employer",
    "family_members_under_18",
    "country_of_birth_father",
    "country_of_birth_mother",
    "country_of_birth_self",
    "citizenship",
    "own_business_or_self_employed",
    "fill_inc_questionnaire_for_veterans_admin",
    "veterans_benefits",
    "weeks_worked_in_year",
    "year",
    "income_over_50k",
]

NUMERIC = {
    "age": "standard",
    "wage_per_hour": "log",
    "capital_gains": "log",
    "capital_losses": "log",
    "dividends_from_stocks": "log",
    "num_persons_worked_for_employer": "standard",
    "weeks_worked_in_year": "standard",
}
_COLLEGE = (  # of all cuts the one whose correlation with never-married, .239, is near the .2373 of MMoE's paper
    "Associates degree-occup /vocational",
    "Associates degree-academic program",
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
)
# task: (the column it is made from, its label)
_TASKS = {
    "income": ("income_over_50k", pl.col("income_over_50k") == "50000+"),
    "marital": ("marital_stat", pl.col("marital_stat") == "Never married"),
    "education": ("education", pl.col("education").is_in(_COLLEGE)),
}


def census_income(
    tasks: Sequence[str] = ("income", "marital"),
    *,
    keep_education: bool = False,
    categories: bool = False,
    weighted: bool = False,
    data_dir: str | Path | None = None,
) -> tuple[Log, Log, Log]:
    """(train, valid, test) of Census-Income as in MMoE's and PLE's papers: 199,523, 49,881 and 49,881 persons.

    Terms and citation: see the top of this file.

    Binary tasks: "income" (over 50,000 dollars), "marital" (never married), "education" (an associate's
    degree or more).
    Features: 38 of the 40 columns, 7 numeric and 31 categorical; role context, as there are no users and items. Marital
    status and education are no features, whichever the tasks are, so that a model of one task reads what a model of two
    reads. "?" is a value of its own, as in the file: these answers are not missing at random. The income is never a
    feature, and `instance_weight`, how many persons a row stands for, is none either; published multi-task numbers do not
    use it. The test file is cut 1:1 at random, always at the same rows, into validation and test; the papers do not say
    which rows are which.

    Args:
        tasks: the published pairs are ("income", "marital") and ("education", "marital").
        keep_education: education as a 39th feature, as toolkits that report higher numbers have it.
        categories: the seven numbers as categories, each value one of its own. They are whole, most rows have 0, and single
            amounts tell more than those beside them: with gains of 10,520 dollars all earn over 50,000, with 8,614 one in forty.
        weighted: weigh rows by `instance_weight`, in loss and metrics.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
        ConfigError: an unknown task, or none; education as a feature and a task.
    """
    if isinstance(tasks, str) or not tasks:
        raise ConfigError(f"tasks= is a list of {', '.join(_TASKS)}; got {tasks!r}.")
    for task in tasks:
        if task not in _TASKS:
            raise unknown("task of Census-Income", task, _TASKS)
    if keep_education and "education" in tasks:
        raise ConfigError("keep_education=True would make the task 'education' a feature of itself; leave one out.")
    folder = ABOUT[0].folder(data_dir)
    apart = {"instance_weight", "income_over_50k", "marital_stat", *(() if keep_education else ("education",))}
    names = [c for c in COLUMNS if c not in apart]
    numbers = () if categories else NUMERIC
    features = [Numeric(c, transform=NUMERIC[c]) if c in numbers else Categorical(c) for c in names]
    schema = Schema(features, [Task(t) for t in tasks])

    def part(file: str) -> Log:
        path = find_file(folder, file)
        table = read_table(path, dict.fromkeys(COLUMNS, pl.String)).with_columns(pl.all().str.strip_chars(" "))
        table = table.with_columns(pl.col("income_over_50k").str.strip_chars_end("."))
        odd = table.filter(~pl.col("income_over_50k").is_in(("50000+", "- 50000")).fill_null(False))["income_over_50k"]
        if len(odd):
            raise DataError(f"{str(path)!r} holds income {odd[0]!r}; '- 50000.' or '50000+.' is due.")
        kind = pl.Int64 if categories else pl.Float64
        cast = [*(pl.col(c).cast(kind) for c in NUMERIC), pl.col("instance_weight").cast(pl.Float64)]
        try:
            events = table.with_columns(*cast, *(_TASKS[t][1].cast(pl.Int8).alias(t) for t in tasks))
        except pl.exceptions.PolarsError as e:
            raise DataError(f"{str(path)!r} holds a text where a number is due: {str(e).splitlines()[0]}.") from e
        return Log(events, schema, weight="instance_weight" if weighted else None, name=ABOUT[0].name)

    test = part("census-income.test")
    order = np.random.default_rng(0).permutation(len(test))
    half = len(test) // 2
    return part("census-income.data"), test.select(np.sort(order[:half])), test.select(np.sort(order[half:]))
