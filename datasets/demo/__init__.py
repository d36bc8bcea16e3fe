"""The embedded demo set: seven small classes in MVTec layout, made from nothing but code and scikit-image's own photographs."""
