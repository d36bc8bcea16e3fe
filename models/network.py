"""The whole model: backbone, neck, reconstruction and optionally a discriminator, which share one dict."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models.backbones import BACKBONES
from models.discriminators import Discriminator
from models.necks import MFCN
from models.reconstructions import Memory, UniAD, VisDecoder

# Every `type` that a configuration may name.
SUBNETS: dict[str, Callable[..., nn.Module]] = {
    **{f"models.backbones.{name}": builder for name, builder in BACKBONES.items()},
    "models.necks.MFCN": MFCN,
    "models.reconstructions.UniAD": UniAD,
    "models.reconstructions.Memory": Memory,
    "models.reconstructions.VisDecoder": VisDecoder,
    "models.discriminators.Discriminator": Discriminator,
}


FRONT = 2  # subnets before the reconstruction


class Network(nn.Module):
    """Its children are the subnets, in order. Each reads the dict and adds its keys to it.

    Children named in `frozen` stay in eval mode, without gradients, also after `.train()` of the network.
    """

    def __init__(self, subnets: dict[str, nn.Module], frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.frozen = tuple(frozen)
        for name, subnet in subnets.items():
            self.add_module(name, subnet)
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)
        self.train()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes {"image": Bx3xHxW} and returns it with every subnet's keys added.

        If the inputs contain `feature_align` BxCxhxw, from a cache, backbone and neck do not run. If they contain `pseudo`,
        images like `image`, the backbone's features of those are added as `pseudo_features`.
        """
        outputs = dict(inputs) if "feature_align" in inputs else self.front(inputs)
        if "pseudo" in inputs:
            outputs["pseudo_features"] = self.subnets[0]({"image": inputs["pseudo"]})["features"]
        for subnet in self.subnets[FRONT:]:
            outputs.update(subnet(outputs))
        return outputs

    def front(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with what backbone and neck add; a cache may hold `feature_align` in place of the image."""
        outputs = dict(inputs)
        for subnet in self.subnets[:FRONT] if "feature_align" not in inputs else ():
            outputs.update(subnet(outputs))
        return outputs

    @property
    def subnets(self) -> list[nn.Module]:
        return list(self.children())

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self


def build_network(net: Sequence[dict], with_pretrained: bool = True) -> Network:
    """The network of a configuration's `net` as utils.config.load_config returns it, with derived values.

    with_pretrained: False if a checkpoint is loaded next, so that no ImageNet weights are read.
    """
    subnets = {}
    for subnet in net:
        kwargs = dict(subnet["kwargs"])
        if "pretrained" in kwargs and not with_pretrained:
            kwargs["pretrained"] = False
        subnets[subnet["name"]] = SUBNETS[subnet["type"]](**kwargs)
    return Network(subnets, frozen=[subnet["name"] for subnet in net if subnet["frozen"]])


def find_memory(network: nn.Module) -> Memory | None:
    """The network's memory; None where it has none."""
    return next((subnet for subnet in network.children() if isinstance(subnet, Memory)), None)
