"""The whole model: backbone, neck, reconstruction and maybe a discriminator in a row, passing one dict along."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models.backbones import BACKBONES
from models.discriminators import Discriminator
from models.necks import MFCN
from models.reconstructions import UniAD, VisDecoder

# Every `type` a configuration may name; nothing else can be built from one.
SUBNETS: dict[str, Callable[..., nn.Module]] = {
    **{f"models.backbones.{name}": builder for name, builder in BACKBONES.items()},
    "models.necks.MFCN": MFCN,
    "models.reconstructions.UniAD": UniAD,
    "models.reconstructions.VisDecoder": VisDecoder,
    "models.discriminators.Discriminator": Discriminator,
}


class Network(nn.Module):
    """Its children are the subnets by name, in order; each takes the dict and adds its keys to it.

    Children named in `frozen` stay in eval mode, without gradients, whatever `.train()` is called on the whole.
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
        """Takes `image` Bx3xHxW (or whatever the first subnet reads); returns it with every subnet's keys added.

        Where the inputs hold `feature_align` BxCxhxw already, read from a cache, backbone and neck are not run. Where they hold
        `pseudo`, images like `image`, the first subnet's `features` of these are in `pseudo_features`.
        """
        outputs = dict(inputs)
        subnets = list(self.children())
        if "pseudo" in inputs:
            outputs["pseudo_features"] = subnets[0]({"image": inputs["pseudo"]})["features"]
        for subnet in subnets[2:] if "feature_align" in inputs else subnets:
            outputs.update(subnet(outputs))
        return outputs

    def train(self, mode: bool = True) -> "Network":
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self


def build_network(net: Sequence[dict], with_pretrained: bool = True) -> Network:
    """The network of a configuration's `net`, as utils.config.load_config returns it: validated, derived values filled in.

    Without `with_pretrained` no ImageNet weights are read, whatever `net` says: a checkpoint is loaded next.
    """
    subnets = {}
    for subnet in net:
        kwargs = dict(subnet["kwargs"])
        if "pretrained" in kwargs and not with_pretrained:
            kwargs["pretrained"] = False
        subnets[subnet["name"]] = SUBNETS[subnet["type"]](**kwargs)
    return Network(subnets, frozen=[subnet["name"] for subnet in net if subnet["frozen"]])
