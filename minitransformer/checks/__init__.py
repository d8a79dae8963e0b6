"""The conformance suite: does an implementation keep the promises that masks are about?

    from minitransformer.checks import check_attention
    report = check_attention(my_attention)      # any function (query, key, value, mask) -> output
    print(report)
"""

from minitransformer.checks import attention as _attention  # noqa: F401 -- registers its checks
from minitransformer.checks.probes import AttentionSubject, attention_weights_of
from minitransformer.checks.diagnosis import diagnose
from minitransformer.checks.suite import run_checks

SUBJECTS = {"attention": AttentionSubject}
