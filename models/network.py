"""The whole model: backbone, neck, reconstruction and optionally a discriminator, which share one dict."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models.backbones import BACKBONES
from models.discriminators import Discriminator
from models.necks import MFCN
from models.reconstructions import Dinomaly, Memory, UniAD, VisDecoder

# Every `type` that a configuration may name.
SUBNETS: dict[str, Callable[..., nn.Module]] = {
    **{f"models.backbones.{name}": builder for name, builder in BACKBONES.items()},
    "models.necks.MFCN": MFCN,
    "models.reconstructions.UniAD": UniAD,
    "models.reconstructions.Memory": Memory,
    "models.reconstructions.Dinomaly": Dinomaly,
    "models.reconstructions.VisDecoder": VisDecoder,
    "models.discriminators.Discriminator": Discriminator,
}


class Network(nn.Module):
    """Its children are the subnets, in order. Each reads the dict and adds its keys to it.

    Children named in `frozen` stay in eval mode, without gradients, also after `.train()` of the network.
    """

    def __init__(self, subnets: dict[str, nn.Module], frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self.frozen = tuple(frozen)
        # What the reconstruction reads, and how many subnets make it: backbone and neck, or the backbone alone.
        self.dinomaly = next((name for name, subnet in subnets.items() if isinstance(subnet, Dinomaly)), None)
        self.reads, self.depth = ("token_groups", 1) if self.dinomaly else ("feature_align", 2)
        for name, subnet in subnets.items():
            self.add_module(name, subnet)
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)
        self.train()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Takes {"image": Bx3xHxW} and returns it with every subnet's keys added.

        If the inputs contain what `front` makes, from a cache, backbone and neck do not run. If they contain `pseudo`, images
        like `image`, the backbone's features of those are added as `pseudo_features`.
        """
        outputs = self.front(inputs)
        if "pseudo" in inputs:
            outputs["pseudo_features"] = self.subnets[0]({"image": inputs["pseudo"]})["features"]
        for subnet in self.subnets[self.depth :]:
            outputs.update(subnet(outputs))
        return outputs

    def front(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with what the reconstruction reads, `self.reads`, which a cache may hold in place of the image.

        That is `feature_align` BxCxhxw, or for Dinomaly `token_groups` BxGxNxD.
        """
        outputs = dict(inputs)
        if self.reads in inputs:
            return outputs
        for subnet in self.subnets[: self.depth]:
            outputs.update(subnet(outputs))
        if self.dinomaly:
            outputs[self.reads] = getattr(self, self.dinomaly).group(outputs["features"], outputs.get("prefix"))
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
