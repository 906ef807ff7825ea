"""Tables and figures of ``moe_routing``: what their columns mean, in words."""

from __future__ import annotations

from sparsescope.core.columns import Column
from sparsescope.core.registry import View
from sparsescope.core.tables import JACKKNIFED, LAYER, with_interval

_EXPERT = Column(
    "expert", "expert", "Number of the expert in its layer; numbers of two layers are unrelated."
)
_OTHER = Column("other", "label", "The other expert of the same layer.")
_DOMAIN = Column("domain", "domain", "Domain of the text; 'all' is the whole of it.")
_DOCUMENTS = Column("documents", "count", "Documents behind the row; they are the independent units.")
_TOKENS = Column("tokens", "count", "Tokens after the first of each window.")


def _nats(name: str, description: str) -> Column:
    return Column(name, "value", description, "nats")


TABLES: dict[str, tuple[Column, ...]] = {
    "load": (
        LAYER,
        _DOMAIN,
        *with_interval(
            Column(
                "cv", "value", "Standard deviation of the tokens of an expert over their mean; 0 is balanced."
            ),
            JACKKNIFED,
        ),
        Column("normalized_entropy", "fraction", "Entropy of the shares of slots over ln E; 1 is balanced."),
        Column("effective_experts", "value", "exp of that entropy: E where balanced."),
        Column("max_violation", "value", "MaxVio: (largest load - mean) / mean, over the whole text."),
        Column("max_token_share", "fraction", "Share of the tokens that the busiest expert gets (MRI)."),
        Column("dead", "fraction", "Share of experts without a token; not known below 50 E / k tokens."),
        Column("auxiliary_loss", "value", "E sum_e p_e P_e of this layer alone; k where balanced."),
        Column("z_loss", "value", "Mean squared logsumexp of the scores."),
        _nats("router_entropy", "Mean entropy of the router's probabilities on a token; ln E at most."),
        Column(
            "margin",
            "value",
            "Mean score of the last expert chosen minus the first one left out; NaN where a bias or "
            "groups decide too.",
        ),
        Column(
            "near_ties", "fraction", "Share of tokens with a margin below 0.001, which rounding may decide."
        ),
        _TOKENS,
        _DOCUMENTS,
    ),
    "domain_shares": (
        LAYER,
        _EXPERT,
        _DOMAIN,
        *with_interval(
            Column("share", "fraction", "Share of the tokens of the domain that choose the expert.")
        ),
        Column("all_share", "fraction", "The same of the mean over domains."),
        Column("lift", "value", "share / all_share."),
        _TOKENS,
        _DOCUMENTS,
    ),
    "specialization": (
        LAYER,
        Column("measure", "metric", "I(E; D) of expert and domain, or the same given the token id."),
        _nats("information", "Plug-in mutual information, which chance makes positive."),
        _nats("null_mean", "The same with the labels of domains dealt anew to whole documents, mean."),
        _nats("null_sd", "Its standard deviation."),
        Column("z", "value", "(information - null_mean) / null_sd."),
        Column("p", "value", "Share of permutations that reach the observed value, itself included."),
        Column("q", "value", "p after Benjamini-Hochberg over all rows of this table."),
        *with_interval(_nats("excess", "information - null_mean: what chance does not give."), JACKKNIFED),
        _nats(
            "shuffled", "excess of the model with shuffled routers, against its own null; mean over draws."
        ),
        _nats("shuffled_sd", "Its standard deviation over draws; NaN for one draw."),
        *with_interval(
            _nats("beyond_shuffled", "excess - shuffled, on the same documents."),
            f"{JACKKNIFED}, paired,",
            "beyond_",
        ),
        Column("of_entropy", "fraction", "excess over the entropy of the domain, H(D)."),
        _DOCUMENTS,
    ),
    "vocabulary": (
        LAYER,
        Column("of", "label", "Which token: the one that is read, or the one that comes next."),
        Column(
            "share", "fraction", "Share of a token id's first choices that go to its favourite expert, mean."
        ),
        Column("chance", "fraction", "The same with tokens in random order."),
        Column("ids", "count", "Token ids seen at least 10 times; rarer ones keep to an expert by chance."),
    ),
    "coactivation": (
        LAYER,
        _EXPERT,
        _OTHER,
        Column(
            "share", "fraction", "Share of the expert's tokens that choose the other as well, over all pairs."
        ),
        Column("chance", "fraction", "(k - 1) / (E - 1)."),
        *with_interval(
            Column("lift", "value", "N_ij N / (N_i N_j): 1 if the two were independent."), JACKKNIFED
        ),
        Column("phi", "value", "Correlation of the two indicators."),
        Column("together", "count", "Tokens that choose both."),
        Column("expected", "value", "The same of independent choices, N_i N_j / N.", "tokens"),
    ),
    "repetition": (
        LAYER,
        Column("lag", "count", "Distance of two tokens of a document, in tokens."),
        Column("measure", "metric", "First choice: both have the same; shared: share of experts in common."),
        *with_interval(Column("mean", "fraction", "Mean over pairs of tokens.")),
        Column("load_chance", "fraction", "Independent tokens with these loads."),
        Column("shifted", "fraction", "Null: each token beside one far from it in its document."),
        _DOCUMENTS,
    ),
    "cache": (
        LAYER,
        Column("size", "count", "Experts in the cache, or in the fixed group."),
        Column("rule", "label", "Fixed: the best group of a segment (SRP); Belady: the best cache; LRU."),
        Column("hits", "fraction", "Share of the requests of a segment that are served, mean over segments."),
        Column("chance", "fraction", "The same for tokens in random order."),
        Column("segments", "count", "Whole segments."),
    ),
    "chunk_sparsity": (
        LAYER,
        Column("chunk", "count", "Consecutive tokens, n."),
        *with_interval(Column("sparsity", "fraction", "Share of experts that none of n tokens uses.")),
        Column("independent", "fraction", "Null: independent tokens, each expert at its own rate."),
        Column("alike", "fraction", "Null: independent tokens, all experts at the same rate."),
        _DOCUMENTS,
    ),
    "similarity": (
        LAYER,
        _EXPERT,
        _OTHER,
        Column("cka", "value", "Linear CKA of what both say on the same tokens, centered over tokens."),
        Column("weights", "value", "Cosine of their weights after the best matching of hidden units."),
        Column("weights_random", "value", "The same of one expert and the other with its entries permuted."),
        Column("weights_raw", "value", "Cosine with the hidden units in the order that they have."),
        Column("router", "value", "Cosine of their rows of the router, minus the mean row."),
    ),
    "saliency": (
        LAYER,
        _EXPERT,
        Column("frequency", "fraction", "Share of the tokens that choose it."),
        Column("soft_mass", "fraction", "Mean probability that the router gives it."),
        Column("mean_weight", "fraction", "Mean weight on the tokens that choose it."),
        Column(
            "ean", "value", "EAN: mean over all tokens of the norm of what it says, zero where not chosen."
        ),
        *with_interval(
            Column("reap", "value", "REAP: mean over its tokens of weight times norm of its output.")
        ),
        Column("peak", "value", "Largest absolute entry of its output."),
        Column(
            "super",
            "label",
            "'super' where the peak is above 99.5 % of all and a tenth of the largest: not to be pruned "
            "by rank.",
        ),
        _TOKENS,
    ),
    "ablation": (
        LAYER,
        _EXPERT,
        Column("chosen_for", "domain", "Domain whose tokens choose it most above its mean share."),
        Column("role", "label", "'specialist', or 'matched': an expert of like load beside it."),
        _DOMAIN,
        *with_interval(_nats("change", "Loss of the next token without the expert, minus that with it.")),
        Column("share", "fraction", "Share of the tokens of this domain that choose it."),
        _TOKENS,
        _DOCUMENTS,
    ),
    "ablation_matrix": (
        Column("chosen_for", "domain", "Domain that the experts taken away are specialists of."),
        Column("domain", "domain", "Domain on which the loss is measured."),
        *with_interval(
            _nats(
                "effect",
                "Change without the specialist minus that without experts of like load; mean over layers.",
            )
        ),
        _DOCUMENTS,
    ),
    "pruning": (
        Column("criterion", "label", "What orders the experts of a layer; the least go first."),
        Column("removed", "fraction", "Share of the experts of every layer that are gone."),
        *with_interval(_nats("change", "Loss of the next token minus that of the whole model.")),
        Column("super_removed", "count", "Super experts among those that are gone."),
        _TOKENS,
        _DOCUMENTS,
    ),
    "tokens": (
        Column("document", "document", "Document of the token."),
        Column("position", "position", "Place in the text that is shown."),
        Column("token_text", "token_text", "The token."),
        LAYER,
        _EXPERT,
    ),
}

VIEWS: tuple[View, ...] = (
    View(
        "domains",
        "Which domain chooses which expert",
        "Share of the tokens of a domain that choose an expert, minus the mean over domains, by layer. "
        "Blue cells "
        "are experts that a domain chooses more than the others do. Whether that is more than chance and "
        "token "
        "frequency give is said by the next figure.",
        table="domain_shares",
        formula="N_(e,D) / N_D - mean over domains",
        citation="Muennighoff et al. 2024, arXiv:2409.02060, section 5.3",
    ),
    View(
        "specialization",
        "Specialization beyond chance, by layer",
        "Mutual information of expert and domain, less what labels dealt anew to whole documents give. "
        "Left: of "
        "any kind. Right: where the token id is known. Gray: the same model with shuffled routers, which "
        "have no "
        "learned directions. Where the bars overlap, the router adds nothing to what any directions "
        "would show.",
        table="specialization",
        formula="I(E; D) and I(E; D | token), minus the mean of the permuted labels",
    ),
    View(
        "load",
        "How even the load is",
        "Tokens of each expert over the mean of its layer, sorted, and the effective number of experts. "
        "A balanced "
        "layer is flat at 1.",
        table="load",
        formula="N_e / mean N;  exp H(f)",
        citation="Fedus et al. 2021, arXiv:2101.03961; Wang et al. 2024, arXiv:2408.15664",
    ),
    View(
        "coactivation",
        "Experts that are chosen together",
        "Lift of every pair of experts of a layer: how much more often two share a token than "
        "independent choices "
        "with the same loads would. All pairs of the k experts of a token count.",
        table="coactivation",
        select="layer",
        formula="N_ij N / (N_i N_j)",
        citation="Muennighoff et al. 2024, arXiv:2409.02060, section 5.2",
    ),
    View(
        "coactivation_graph",
        "Groups of experts",
        "Experts of a layer, joined where two share a token more often than independent choices with the "
        "same loads would, with the whole interval of the lift above 1.",
        table="coactivation",
        select="layer",
        formula="low end of N_ij N / (N_i N_j) > 1",
        citation="Muennighoff et al. 2024, arXiv:2409.02060, section 5.2",
    ),
    View(
        "repetition",
        "Do neighbors choose the same experts",
        "Share of experts that two tokens of a document have in common, against their distance. Dotted: "
        "independent tokens with these loads. Dashed: tokens of the same document far from each other.",
        table="repetition",
        formula="|S_t and S_(t + lag)| / k",
        citation="Jiang et al. 2024, arXiv:2401.04088, table 5",
    ),
    View(
        "cache",
        "What a cache of experts would serve",
        "Share of the requests of a segment that find their expert in a cache that begins empty, against "
        "its size; "
        "thin lines are for tokens in random order. Belady's rule knows the future: no cache does better.",
        table="cache",
        formula="hits / requests, mean over segments and layers",
        citation="arXiv:2505.16056",
    ),
    View(
        "chunk_sparsity",
        "Experts that a chunk of tokens never needs",
        "Share of experts that none of n consecutive tokens uses. Dashed: independent tokens, each "
        "expert at its "
        "own rate.",
        table="chunk_sparsity",
        formula="CLS_n = 1 - |union of n sets| / E",
        citation="BlockFFN, arXiv:2507.08771",
    ),
    View(
        "similarity",
        "How alike experts are",
        "Linear CKA of what two experts of a layer say on the same tokens, and cosine of their weights "
        "after the "
        "best matching of hidden units, against that of matched random weights.",
        table="similarity",
        formula="||X'Y||^2 / (||X'X|| ||Y'Y||), centered over tokens",
        citation="Kornblith et al. 2019, arXiv:1905.00414",
    ),
    View(
        "ablation_matrix",
        "Does a domain need its specialists",
        "Loss on a domain (columns) without the specialists of a domain (rows), minus that without "
        "experts of like "
        "load; mean over layers. Specialists that matter show on the diagonal.",
        table="ablation_matrix",
        formula="dNLL(specialist) - mean dNLL(matched)",
    ),
    View(
        "pruning",
        "How many experts can go",
        "Loss without the least salient experts of every layer, by criterion; tokens go to their next "
        "best expert. "
        "A criterion helps where its line is below that of random orders.",
        table="pruning",
        formula="NLL(without) - NLL(whole)",
        citation="arXiv:2510.13999",
    ),
    View(
        "token_experts",
        "Which expert reads which token",
        "A text with the first choice of a layer for each token; point at a token to see it.",
        table="tokens",
        select="document",
    ),
)
